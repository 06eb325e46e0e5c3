use crate::{RegistryError, Result};
use sconce_core::abbreviate;

/// The deepest path: folders and the file's name.
pub(crate) const MAX_DEPTH: usize = 8;
/// The longest path, in bytes.
pub(crate) const MAX_PATH_BYTES: usize = 512;
/// The longest name of one file or folder that file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Refuses what is not a plain relative path: paths come from uploads, listings of other servers and restored records,
/// and become file names.
///
/// # Errors
/// `Invalid`, with the path and what is wrong with it.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let problem = if path.is_empty() {
        "is empty"
    } else if path.len() > MAX_PATH_BYTES {
        "is longer than 512 bytes"
    } else if path.chars().any(char::is_control) {
        "has a control character"
    } else if path.contains('\\') {
        "has a backslash"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.split('/').any(str::is_empty) {
        "has an empty name"
    } else if path.split('/').any(|name| name.starts_with('.')) {
        "has a name that starts with a dot"
    } else if path.split('/').any(|name| name.len() > MAX_NAME_BYTES) {
        "has a name longer than 255 bytes"
    } else if path.split('/').count() > MAX_DEPTH {
        "is deeper than 8 levels"
    } else {
        return Ok(());
    };
    Err(RegistryError::Invalid(format!("file path {:?} {problem}", abbreviate(path))))
}

/// Whether two paths cannot both be files of one folder: equal, or one a folder of the other.
pub(crate) fn collide(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_a_folder_are_refused() {
        let long = "x".repeat(256);
        let longer = "ab/".repeat(171) + "x";
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            "./a",
            "a\\b",
            "a\0b",
            "a\nb",
            "a\u{85}b",
            ".git/config",
            "a/.hidden",
            "1/2/3/4/5/6/7/8/9",
            &long,
            &longer,
        ] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "model.safetensors", "1/model.onnx", "1/2/3/4/5/6/7/8", "ä b/c..d", &long[1..]] {
            assert!(check_path(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_file_and_a_folder_of_one_name_collide() {
        assert!(collide("a", "a") && collide("a", "a/b") && collide("a/b/c", "a/b"));
        assert!(!collide("a", "ab") && !collide("a/b", "a/c"));
    }
}
