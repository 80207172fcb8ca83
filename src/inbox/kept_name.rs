//! The full name of a claimed file, kept in a dot file beside a claim whose own name had to be shortened.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use uuid::Uuid;

use super::directory::{Directory, READ};
use super::{Place, disk, list, names};
use crate::error::{IoContext, Result};

/// Writes the name of a file that is about to be claimed. Hold the returned file until the claim is there: until then its lock
/// tells [`sweep`] that it is needed.
pub fn write(loading: &Directory, key: Uuid, name: &OsStr) -> io::Result<File> {
    disk::write(loading, OsStr::new(&names::kept_name(key)), OsStr::new(&names::unfinished(key)), name.as_bytes())
}

/// The kept name of a claim, if there is one.
pub fn read(loading: &Directory, key: Uuid) -> io::Result<Option<OsString>> {
    let kept = loading.open_file(OsStr::new(&names::kept_name(key)), READ)?;
    kept.map(|kept| contents(&kept)).transpose()
}

fn contents(mut kept: &File) -> io::Result<OsString> {
    let mut name = Vec::new();
    kept.read_to_end(&mut name)?;
    Ok(OsString::from_vec(name))
}

/// Removes the names of claims that were never made, because their process died before.
pub fn sweep(place: &Place) -> Result<()> {
    for entry in list(&place.loading)? {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(key) = names::key_of_kept_name(&name) else { continue };
        // Looked at under its lock: whoever makes the claim holds the lock until the claim is there.
        let swept = place.open(&place.loading).and_then(|loading| {
            disk::sweep(&loading, &name, |kept| Ok(loading.look(&names::keyed(key, &contents(kept)?))?.is_some()))
        });
        if swept.cannot(format_args!("remove {}", path.display()))? {
            tracing::info!("removed {}, which a process that died had written for a file that it did not claim", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::Inbox;
    use super::*;
    use crate::dataset::Dataset;
    use crate::vitals::Vitals;

    #[test]
    fn a_kept_name_is_swept_if_nobody_holds_it_and_it_has_no_claim() {
        let root = tempfile::tempdir().unwrap();
        let stage = Vitals::default().stage("intake");
        let inbox = Inbox::open(root.path(), &[Arc::new(Dataset::without_columns("events"))], Duration::ZERO, &stage).unwrap();
        let loading = inbox.places[0].open(&inbox.places[0].loading).unwrap();
        let long = "x".repeat(255);
        let keys: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
        let mut held: Vec<File> = keys.iter().map(|key| write(&loading, *key, OsStr::new(&long)).unwrap()).collect();
        let path = |name: OsString| root.path().join("events/.loading").join(name);
        let kept = |key: Uuid| path(names::kept_name(key).into()).exists();
        // The first is about to be claimed, the second is claimed, the process of the third has died.
        held.truncate(1);
        fs::write(path(names::keyed(keys[1], OsStr::new(&long))), "[]").unwrap();
        inbox.sweep().unwrap();
        assert_eq!(keys.iter().map(|key| kept(*key)).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(read(&loading, keys[1]).unwrap(), Some(long.into()));
    }
}
