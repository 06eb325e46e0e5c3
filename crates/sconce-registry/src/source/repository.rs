use crate::artifacts::{Artifacts, Import, Transfer, io_error, list, list_flat};
use crate::{RegistryError, Result};
use sconce_core::{ModelName, ModelVersion};
use std::fs;
use std::path::{Path, PathBuf};

/// The most entries of one folder, and the most versions of a repository.
const MAX_ENTRIES: usize = 10_000;

/// One version in a model repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryVersion {
    /// The model.
    pub name: ModelName,
    /// The version.
    pub version: ModelVersion,
    /// `ROOT/NAME/VERSION`.
    pub folder: PathBuf,
}

impl RepositoryVersion {
    /// Copies the version's files, and those beside its folder that hold for every version of the model
    /// (`config.pbtxt`, labels). Where both have a file of one name, the version's is taken. Whether something can load
    /// them is not asked here.
    ///
    /// # Errors
    /// As [`Artifacts::import_folder`].
    pub fn fetch(&self, artifacts: &Artifacts, transfer: &Transfer<'_>) -> Result<Import> {
        let mut found = list(&self.folder)?;
        if let Some(model) = self.folder.parent() {
            let shared = list_flat(model)?;
            let own: Vec<_> = found.iter().map(|file| file.path.clone()).collect();
            let taken = |path: &str| own.iter().any(|own| own.split('/').next() == Some(path));
            found.extend(shared.into_iter().filter(|file| !taken(&file.path)));
        }
        let mut importer = artifacts.importer(transfer.limits);
        for file in &found {
            importer.copy(file, transfer)?;
        }
        importer.finish()
    }
}

/// Whether `root` holds no file, and a folder with a numbered folder.
pub(super) fn is_repository(root: &Path) -> Result<bool> {
    let mut numbered = false;
    for (_, path) in children(root)? {
        if path.is_file() {
            return Ok(false);
        }
        numbered |= path.is_dir() && children(&path)?.iter().any(is_version);
    }
    Ok(numbered)
}

/// Every `NAME/NUMBER` below `root`.
pub(super) fn versions(root: &Path) -> Result<Vec<RepositoryVersion>> {
    let mut versions = Vec::new();
    for (name, model) in children(root)?.into_iter().filter(|(_, path)| path.is_dir()) {
        let name = ModelName::new(&name).map_err(|error| RegistryError::Invalid(error.to_string()))?;
        for (number, folder) in children(&model)?.into_iter().filter(is_version) {
            let Some(version) = ModelVersion::parse(&number) else { continue };
            if versions.len() == MAX_ENTRIES {
                return Err(RegistryError::Invalid(format!(
                    "more than {MAX_ENTRIES} versions in one repository"
                )));
            }
            versions.push(RepositoryVersion { name: name.clone(), version, folder });
        }
    }
    versions.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    Ok(versions)
}

fn is_version((name, path): &(String, PathBuf)) -> bool {
    ModelVersion::parse(name).is_some() && path.is_dir()
}

/// The entries of `folder` that are not hidden.
fn children(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = || format!("cannot list folder {}", folder.display());
    let mut children = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(failed))? {
        let entry = entry.map_err(io_error(failed))?;
        if children.len() == MAX_ENTRIES {
            return Err(RegistryError::Invalid(format!(
                "folder {} has more than {MAX_ENTRIES} entries",
                folder.display()
            )));
        }
        // A name that is no UTF-8 is no model's and no version's; as a file of a version it is refused there.
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            children.push((name, entry.path()));
        }
    }
    Ok(children)
}
