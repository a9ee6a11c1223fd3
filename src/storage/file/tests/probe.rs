//! What a probe of the disk finds.

use std::{io, path::Path, sync::Arc};

use super::sim::{Fault, Sim};
use crate::storage::{
    RefusalCause,
    file::{
        disk::{Disk, Found, OpenFile},
        probe::Probe,
    },
};

/// A disk on which the registry's file may be written and its folder may not.
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

fn found(probe: &mut Probe) -> Option<RefusalCause> {
    probe.run().map(|refusal| refusal.cause)
}

#[test]
fn a_probe_needs_room_on_the_disk_each_time() {
    let disk = Sim::default();
    disk.put("registry.probe", b"not ours");
    let mut probe = Probe::new(Arc::new(disk.clone()), Path::new("registry"));
    for _ in 0..3 {
        assert_eq!(found(&mut probe), None);
        assert_eq!(disk.content("registry.probe").as_deref(), Some(&b"not ours"[..]));
        assert_eq!(disk.len(), 8, "it leaves nothing");
        disk.set_fault(Some(Fault::Full));
        assert_eq!(found(&mut probe), Some(RefusalCause::DiskFull));
        disk.set_fault(Some(Fault::Syncs));
        assert_eq!(found(&mut probe), Some(RefusalCause::DiskFailed));
        disk.set_fault(None);
    }
}

#[test]
fn a_folder_that_must_not_be_written_is_no_failure_of_the_disk() {
    let mut probe = Probe::new(Arc::new(ForeignFolder), Path::new("registry"));
    assert_eq!(found(&mut probe), None);
}
