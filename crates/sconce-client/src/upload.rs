//! The files of a folder, on their way to a server.

use crate::control_proto as pb;
use crate::control_proto::register_request::Part;
use crate::{Code, Error, Result};
use futures_util::{Stream, stream};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Bytes of a file in one message.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages that wait for the connection.
const WAITING: usize = 4;
/// What a version may have at most, as the registry has it: the server would refuse more.
const MAX_FILES: usize = 1_024;
const MAX_ENTRIES: usize = 8 * MAX_FILES;
const MAX_DEPTH: usize = 8;

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file under way.
    pub file: &'a str,
    /// Bytes transferred, of all files together.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// Regular files below a folder, by path.
#[derive(Debug)]
pub(crate) struct Files(Vec<Found>);

#[derive(Debug)]
struct Found {
    /// Below the folder, separated by `/`.
    path: String,
    /// Where its content is, links resolved.
    content: PathBuf,
    bytes: u64,
}

impl Files {
    /// Lists what [`RegistryClient::register_folder`](crate::RegistryClient::register_folder) sends.
    ///
    /// # Errors
    /// `InvalidArgument` for a link that leads out of the folder, a special file, a name that is not UTF-8, too many files or
    /// levels, none at all, or what cannot be read.
    pub(crate) fn list(folder: &Path) -> Result<Self> {
        let root = fs::canonicalize(folder).map_err(cannot("open", folder))?;
        let mut walk = Walk { root: root.clone(), entries: 0, found: Vec::new() };
        walk.folder(&root, "", 1)?;
        walk.found.sort_by(|a, b| a.path.cmp(&b.path));
        if walk.found.is_empty() {
            return Err(invalid(format!("{}: expected files to upload, got none", folder.display())));
        }
        Ok(Self(walk.found))
    }

    /// Reads the files on a thread of their own: the messages, and a future that ends only with what that thread failed with.
    /// After a failure the messages do not end but stay away, because an upload that ends is a whole one to the server.
    pub(crate) fn send(
        self,
        header: pb::NewVersion,
        progress: impl FnMut(Progress<'_>) + Send + 'static,
    ) -> (impl Stream<Item = pb::RegisterRequest> + Send + 'static, impl Future<Output = Error>) {
        let (parts, receiver) = mpsc::channel(WAITING);
        let (failed, failure) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let mut sender = Sender { parts, progress };
            // Where nobody receives any more, the call has its answer, and that counts.
            if let Err(error) = sender.all(header, &self.0)
                && !sender.parts.is_closed()
            {
                let _ = failed.send(error);
            }
        });
        let messages = stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Some(Some(part)) => Some((pb::RegisterRequest { part: Some(part) }, receiver)),
                Some(None) => None,
                None => std::future::pending().await,
            }
        });
        let failure = async {
            match failure.await {
                Ok(error) => error,
                Err(_) => std::future::pending().await,
            }
        };
        (messages, failure)
    }
}

/// Hands parts over; `None` is the end.
struct Sender<P> {
    parts: mpsc::Sender<Option<Part>>,
    progress: P,
}

impl<P: FnMut(Progress<'_>)> Sender<P> {
    fn all(&mut self, header: pb::NewVersion, files: &[Found]) -> Result<()> {
        let total_bytes = files.iter().map(|file| file.bytes).sum();
        let mut bytes = 0;
        self.part(Some(Part::Header(header)))?;
        for found in files {
            let mut file = open_regular(found)?;
            let header =
                pb::FileHeader { path: found.path.clone(), bytes: found.bytes, ..Default::default() };
            self.part(Some(Part::File(header)))?;
            let mut left = found.bytes;
            (self.progress)(Progress { file: &found.path, bytes, total_bytes });
            while left > 0 {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let most = left.min(CHUNK_BYTES as u64);
                file.by_ref().take(most).read_to_end(&mut chunk).map_err(cannot("read", &found.content))?;
                if chunk.len() as u64 != most {
                    return Err(invalid(format!("`{}` became shorter while it was read", found.path)));
                }
                self.part(Some(Part::Chunk(chunk)))?;
                left -= most;
                bytes += most;
                (self.progress)(Progress { file: &found.path, bytes, total_bytes });
            }
            if file.read(&mut [0]).map_err(cannot("read", &found.content))? != 0 {
                return Err(invalid(format!("`{}` became longer while it was read", found.path)));
            }
        }
        self.part(None)
    }

    fn part(&mut self, part: Option<Part>) -> Result<()> {
        let ended = |_| Error::new(Code::Cancelled, "the server ended the upload");
        self.parts.blocking_send(part).map_err(ended)
    }
}

/// Opens what was found, if it still is a regular file of that size.
fn open_regular(found: &Found) -> Result<File> {
    let before = fs::symlink_metadata(&found.content).map_err(cannot("read", &found.content))?;
    if !before.is_file() || before.len() != found.bytes {
        return Err(invalid(format!("`{}` changed while it was uploaded", found.path)));
    }
    File::open(&found.content).map_err(cannot("read", &found.content))
}

struct Walk {
    root: PathBuf,
    entries: usize,
    found: Vec<Found>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<()> {
        for entry in fs::read_dir(folder).map_err(cannot("list", folder))? {
            let entry = entry.map_err(cannot("list", folder))?;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(invalid(format!("the folder has more than {MAX_ENTRIES} entries")));
            }
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Some(name) = name.to_str() else {
                return Err(invalid(format!("file name {name:?} is not UTF-8")));
            };
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().map_err(cannot("read", &entry.path()))?;
            if kind.is_dir() {
                if depth == MAX_DEPTH {
                    return Err(invalid(format!("folder `{path}` is deeper than {MAX_DEPTH} levels")));
                }
                self.folder(&entry.path(), &format!("{path}/"), depth + 1)?;
            } else if kind.is_file() {
                self.add(path, entry.path())?;
            } else if kind.is_symlink() {
                let content = self.follow(&path, &entry.path())?;
                self.add(path, content)?;
            } else {
                return Err(invalid(format!("`{path}` is no regular file")));
            }
        }
        Ok(())
    }

    fn follow(&self, path: &str, link: &Path) -> Result<PathBuf> {
        let target = fs::canonicalize(link).map_err(cannot("follow", link))?;
        let blobs = snapshot_blobs(&self.root);
        if !target.starts_with(&self.root) && !blobs.is_some_and(|blobs| target.starts_with(blobs)) {
            return Err(invalid(format!("link `{path}` leads out of the folder")));
        }
        if target.is_file() {
            Ok(target)
        } else {
            Err(invalid(format!("link `{path}` does not lead to a regular file")))
        }
    }

    fn add(&mut self, path: String, content: PathBuf) -> Result<()> {
        if self.found.len() == MAX_FILES {
            return Err(invalid(format!("the folder has more than {MAX_FILES} files")));
        }
        let bytes = fs::metadata(&content).map_err(cannot("read", &content))?.len();
        self.found.push(Found { path, content, bytes });
        Ok(())
    }
}

/// `models--ORG--NAME/blobs` when `root` is `models--ORG--NAME/snapshots/REVISION`, as a Hugging Face cache has it: its files
/// are links to there.
fn snapshot_blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    repository.file_name()?.to_str()?.starts_with("models--").then(|| repository.join("blobs"))
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidArgument, message)
}

fn cannot(doing: &str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| invalid(format!("cannot {doing} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use std::os::unix::fs::symlink;

    fn paths(folder: &Path) -> Result<Vec<String>> {
        Ok(Files::list(folder)?.0.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn what_is_listed_stays_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("model");
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert_eq!(paths(&root).unwrap_err().code(), Code::InvalidArgument, "nothing there");
        for file in ["z", "a/b/c", ".hidden", "a/.hidden"] {
            fs::write(root.join(file), file).unwrap();
        }
        symlink("a/b/c", root.join("inside")).unwrap();
        assert_eq!(paths(&root).unwrap(), ["a/b/c", "inside", "z"]);

        fs::write(folder.path().join("secret"), "x").unwrap();
        for bad in ["../secret", "/etc/passwd", "a", "missing"] {
            symlink(bad, root.join("bad")).unwrap();
            assert_eq!(paths(&root).unwrap_err().code(), Code::InvalidArgument, "{bad}");
            fs::remove_file(root.join("bad")).unwrap();
        }
        fs::create_dir_all(root.join("1/2/3/4/5/6/7/8")).unwrap();
        assert!(paths(&root).unwrap_err().message().contains("deeper"));
    }

    #[tokio::test]
    async fn a_file_is_sent_in_pieces_and_the_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("big"), vec![7; CHUNK_BYTES + 1]).unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        let (told, said) = std::sync::mpsc::channel();
        let progress = move |p: Progress<'_>| told.send((p.bytes, p.total_bytes)).unwrap();
        let (parts, _) = Files::list(folder.path()).unwrap().send(pb::NewVersion::default(), progress);
        let parts: Vec<_> = parts.map(|part| part.part.unwrap()).collect().await;
        let kinds: Vec<_> = parts
            .iter()
            .map(|part| match part {
                Part::Header(_) => "header".to_owned(),
                Part::File(file) => format!("{} {}", file.path, file.bytes),
                Part::Chunk(bytes) => bytes.len().to_string(),
            })
            .collect();
        let big = (CHUNK_BYTES + 1).to_string();
        assert_eq!(kinds, ["header", &format!("big {big}"), &CHUNK_BYTES.to_string(), "1", "empty 0"]);
        let total = CHUNK_BYTES as u64 + 1;
        assert_eq!(said.iter().last().unwrap(), (total, total));
    }

    #[tokio::test]
    async fn an_upload_that_fails_never_looks_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        fs::write(folder.path().join("b"), "b").unwrap();
        let files = Files::list(folder.path()).unwrap();
        fs::write(folder.path().join("b"), "longer").unwrap();
        let (parts, failed) = files.send(pb::NewVersion::default(), |_| ());
        let all = parts.collect::<Vec<_>>();
        tokio::select! {
            parts = all => panic!("the upload ended as if it were whole: {parts:?}"),
            error = failed => assert!(error.message().contains("`b` changed"), "{error}"),
        }
    }
}
