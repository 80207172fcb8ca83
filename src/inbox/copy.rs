//! Copy: puts a copy of a file into the inbox, as a whole and under a new name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::names::{self, NAME_MAX, is_ignored, shortened, split_extension};
use super::{Symlinks, disk, make_directory};
use crate::error::{IoContext, Result};

/// Copies `file` into `<inbox_root>/<dataset_name>/` and returns the path of the copy. The directory is created if it is
/// missing, for this user alone.
///
/// The name is `<stem>-<uuid>.<extension>`, so the same file can be dropped any number of times. The copy is on disk before it
/// gets this name, so a pipeline that watches the inbox sees the whole file or nothing, even after a crash.
///
/// # Errors
/// If the file cannot be read or the inbox cannot be written, or if its directory is a symbolic link that is refused.
pub fn drop_file(inbox_root: &Path, dataset_name: &str, file: &Path, links: Symlinks) -> Result<PathBuf> {
    let mut source = File::open(file).cannot(format_args!("open {}", file.display()))?;
    let dir = inbox_root.join(dataset_name);
    let directory = make_directory(&dir, links)?;

    let key = Uuid::now_v7();
    let name = fresh_name(file.file_name().unwrap_or_default(), key);
    let dropped = dir.join(&name);
    let copied = disk::copy(&mut source, &directory, &name, OsStr::new(&names::unfinished(key)), || ());
    copied.cannot(format_args!("copy {} to {}", file.display(), dropped.display()))?;
    Ok(dropped)
}

/// `data.json.gz` → `data-<key>.json.gz`. The inbox never ignores the result: a user who drops `.x.json` or `x.tmp` by name
/// wants it loaded.
fn fresh_name(name: &OsStr, key: Uuid) -> OsString {
    let visible = name.as_bytes().iter().position(|&b| b != b'.').unwrap_or(name.len());
    let name = OsStr::from_bytes(&name.as_bytes()[visible..]);
    let (stem, extension) = if is_ignored(name) { (name, OsStr::new("")) } else { split_extension(name) };
    let ending = [format!("-{key}").as_bytes(), extension.as_bytes()].concat();
    let stem = shortened(stem, NAME_MAX.saturating_sub(ending.len()));
    OsString::from_vec([stem.as_bytes(), &ending].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn dropped_name(name: &str) -> String {
        fresh_name(OsStr::new(name), Uuid::nil()).into_string().unwrap().replace(&Uuid::nil().to_string(), "KEY")
    }

    #[test]
    fn the_fresh_name_keeps_the_extension() {
        assert_eq!(dropped_name("data.json"), "data-KEY.json");
        assert_eq!(dropped_name("my.data.json.gz"), "my.data-KEY.json.gz");
        assert_eq!(dropped_name("data.zst"), "data-KEY.zst");
        assert_eq!(dropped_name("data"), "data-KEY");
    }

    #[test]
    fn the_fresh_name_is_never_one_that_is_ignored() {
        assert_eq!(dropped_name(".hidden.json"), "hidden-KEY.json");
        assert_eq!(dropped_name("x.tmp"), "x.tmp-KEY");
        assert_eq!(dropped_name("x.json.part"), "x.json.part-KEY");
        assert_eq!(dropped_name(".part"), "part-KEY");
    }

    #[test]
    fn a_long_name_is_shortened_and_keeps_its_extension() {
        for name in [format!("{}.json.gz", "x".repeat(246)), format!("{}.json", "ä".repeat(125)), "x".repeat(255)] {
            let fresh = fresh_name(OsStr::new(&name), Uuid::nil());
            assert!(fresh.len() <= NAME_MAX, "{fresh:?}");
            assert!(fresh.to_str().is_some(), "{fresh:?}");
            assert_eq!(split_extension(&fresh).1, split_extension(OsStr::new(&name)).1);
        }
        let odd = format!("x.{}", "y".repeat(253));
        assert!(fresh_name(OsStr::new(&odd), Uuid::nil()).len() <= NAME_MAX);
    }

    #[test]
    fn a_file_dropped_twice_is_two_whole_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b.json");
        fs::write(&file, "[{}]").unwrap();
        let inbox = dir.path().join("inbox");
        let first = drop_file(&inbox, "events", &file, Symlinks::Refused).unwrap();
        let second = drop_file(&inbox, "events", &file, Symlinks::Refused).unwrap();
        assert_ne!(first, second);
        for path in [&first, &second] {
            assert_eq!(fs::read(path).unwrap(), b"[{}]");
        }
        assert_eq!(fs::read_dir(inbox.join("events")).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_dropped_is_named_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = drop_file(dir.path(), "events", &dir.path().join("none.json"), Symlinks::Refused).unwrap_err();
        assert!(missing.message().contains("none.json: No such file or directory"), "{missing}");
        let directory = drop_file(dir.path(), "events", dir.path(), Symlinks::Refused).unwrap_err();
        assert!(directory.message().contains("Is a directory"), "{directory}");
        assert_eq!(fs::read_dir(dir.path().join("events")).unwrap().count(), 0);
    }
}
