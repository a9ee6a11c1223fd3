//! What a probe of the disk reports.

use std::{io, path::Path, sync::Arc};

use super::sim::{Fault, Sim};
use crate::storage::{
    RefusalCause,
    file::{
        disk::{Disk, Found, OpenFile},
        probe::Probe,
    },
};

/// A disk on which the user may write the registry's file, but not its folder.
struct ForeignFolder;

impl Disk for ForeignFolder {
    fn open(&self, _: &Path) -> io::Result<OpenFile> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn create(&self, _: &Path) -> io::Result<OpenFile> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn find(&self, _: &Path) -> io::Result<Option<Found>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn name(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn replace(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn run(probe: &mut Probe) -> Option<RefusalCause> {
    probe.run().map(|refusal| refusal.cause)
}

#[test]
fn each_probe_needs_room_on_the_disk() {
    let disk = Sim::default();
    disk.put("registry.probe", b"not ours");
    let mut probe = Probe::new(Arc::new(disk.clone()), Path::new("registry"));
    for _ in 0..3 {
        assert_eq!(run(&mut probe), None);
        assert_eq!(disk.content("registry.probe").as_deref(), Some(&b"not ours"[..]));
        assert_eq!(disk.len(), 8, "the probe leaves nothing behind");
        disk.set_fault(Some(Fault::Full));
        assert_eq!(run(&mut probe), Some(RefusalCause::DiskFull));
        disk.set_fault(Some(Fault::Syncs));
        assert_eq!(run(&mut probe), Some(RefusalCause::DiskFailed));
        disk.set_fault(None);
    }
}

#[test]
fn missing_write_access_to_the_folder_is_not_a_disk_failure() {
    let mut probe = Probe::new(Arc::new(ForeignFolder), Path::new("registry"));
    assert_eq!(run(&mut probe), None);
}
