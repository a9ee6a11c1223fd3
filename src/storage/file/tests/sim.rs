//! A simulated disk in memory. It fails on demand, and a crash of its machine loses what was not synced.

use std::{
    collections::HashMap,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redb::{BackendError, StorageBackend};

use crate::storage::file::disk::{Disk, FileId, Found, OpenFile};

/// A fault of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk is full: writes fail, and no file can grow.
    Full,
    /// Writes fail after writing half of the data.
    TornWrites,
    /// Syncs fail. What was written before can be read, but never reaches the disk.
    Syncs,
    /// Syncs hang, but for at most half a minute, so that a failing test ends.
    Stalled,
    /// Syncs panic.
    Panics,
    /// All operations fail from now on: the machine has stopped.
    Off,
}

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Sim(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: HashMap<PathBuf, Arc<Mutex<File>>>,
    fault: Option<Fault>,
    /// The number of operations until the machine stops.
    operations_left: Option<u64>,
    /// The number of operations until a file is tampered with, and how.
    tampering: Option<(u64, PathBuf, Tampering)>,
}

/// What another process does to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tampering {
    Remove,
    Move,
    /// Replaces the file by another one with the same content.
    Replace,
    Empty,
    /// Overwrites the content with something else of the same length.
    Overwrite,
}

impl Tampering {
    pub(super) const ALL: [Self; 5] = [Self::Remove, Self::Move, Self::Replace, Self::Empty, Self::Overwrite];
}

#[derive(Debug, Default)]
struct File {
    /// The content as it is read.
    content: Vec<u8>,
    /// The content on disk.
    synced: Vec<u8>,
    /// The operations since the last sync.
    unsynced: Vec<Operation>,
}

#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Operation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => bytes.resize(*len as usize, 0),
            Self::Write(offset, data) => {
                let end = *offset as usize + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[end - data.len()..end].copy_from_slice(data);
            }
        }
    }
}

impl Sim {
    pub(super) fn set_fault(&self, fault: Option<Fault>) {
        self.0.lock().fault = fault;
    }

    /// Stops the machine after this many more operations.
    pub(super) fn stop_after(&self, operations: u64) {
        self.0.lock().operations_left = Some(operations);
    }

    /// Tampers with a file after this many more operations.
    pub(super) fn tamper_after(&self, operations: u64, path: &str, tampering: Tampering) {
        self.0.lock().tampering = Some((operations, path.into(), tampering));
    }

    pub(super) fn was_tampered_with(&self) -> bool {
        self.0.lock().tampering.is_none()
    }

    /// Adds a file, or replaces it.
    pub(super) fn put(&self, path: &str, content: &[u8]) {
        let file = File { content: content.to_vec(), synced: content.to_vec(), unsynced: Vec::new() };
        self.0.lock().files.insert(path.into(), Arc::new(Mutex::new(file)));
    }

    /// Returns the content of a file. `None` if it does not exist.
    pub(super) fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.0.lock().files.get(Path::new(path)).map(|file| file.lock().content.clone())
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.0.lock().fault == Some(Fault::Off)
    }

    /// Stops the machine, and returns the disk as it is after a crash. Of the operations that were not synced, some are
    /// lost, some are complete, and some are partial, in any order.
    pub(super) fn after_crash(&self, random: &mut fastrand::Rng) -> Self {
        let mut state = self.0.lock();
        state.fault = Some(Fault::Off);
        let mut files = HashMap::new();
        for (path, file) in &state.files {
            let file = file.lock();
            let mut content = file.synced.clone();
            for operation in &file.unsynced {
                match operation {
                    _ if random.bool() => {}
                    Operation::Write(offset, data) if random.bool() => {
                        let sectors = random.usize(..=data.len() / SECTOR) * SECTOR;
                        Operation::Write(*offset, data[..sectors].to_vec()).apply(&mut content);
                    }
                    operation => operation.apply(&mut content),
                }
            }
            let file = File { synced: content.clone(), content, unsynced: Vec::new() };
            files.insert(path.clone(), Arc::new(Mutex::new(file)));
        }
        Self(Arc::new(Mutex::new(State { files, ..State::default() })))
    }

    /// Returns a disk with copies of the files as they are read now.
    pub(super) fn copy(&self) -> Self {
        let state = self.0.lock();
        let files = state.files.iter().map(|(path, file)| {
            let content = file.lock().content.clone();
            let file = File { synced: content.clone(), content, unsynced: Vec::new() };
            (path.clone(), Arc::new(Mutex::new(file)))
        });
        Self(Arc::new(Mutex::new(State { files: files.collect(), ..State::default() })))
    }

    /// Replaces the files with those of another disk. Handles that are open keep their old files.
    pub(super) fn put_back(&self, copy: &Self) {
        self.0.lock().files = std::mem::take(&mut copy.copy().0.lock().files);
    }

    /// Returns the total length of all files.
    pub(super) fn len(&self) -> usize {
        self.0.lock().files.values().map(|file| file.lock().content.len()).sum()
    }
}

/// The unit that disks write completely or not at all.
const SECTOR: usize = 512;

impl State {
    fn check(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.operations_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.fault = Some(Fault::Off);
            }
        }
        if let Some((left, path, tampering)) = self.tampering.take() {
            match left {
                0 => self.tamper(&path, tampering),
                _ => self.tampering = Some((left - 1, path, tampering)),
            }
        }
        match self.fault {
            Some(Fault::Off) => Err(io::Error::other("the machine has stopped")),
            _ => Ok(()),
        }
    }
}

impl State {
    fn open(&mut self, disk: &Arc<Mutex<Self>>, path: &Path) -> io::Result<OpenFile> {
        let file = Arc::clone(self.files.get(path).ok_or(io::ErrorKind::NotFound)?);
        Ok(OpenFile { id: id(&file), file: Box::new(Handle { disk: Arc::downgrade(disk), file }) })
    }
}

fn id(file: &Arc<Mutex<File>>) -> FileId {
    FileId { device: 0, inode: Arc::as_ptr(file) as u64 }
}

impl State {
    fn tamper(&mut self, path: &Path, tampering: Tampering) {
        let Some(file) = self.files.get(path).cloned() else { return };
        let mut content = file.lock().content.clone();
        match tampering {
            Tampering::Remove => drop(self.files.remove(path)),
            Tampering::Move => {
                self.files.remove(path);
                self.files.insert(path.with_extension("moved"), file);
            }
            Tampering::Replace => {
                let other = File { synced: content.clone(), content, unsynced: Vec::new() };
                self.files.insert(path.to_owned(), Arc::new(Mutex::new(other)));
            }
            Tampering::Empty | Tampering::Overwrite => {
                if tampering == Tampering::Empty {
                    content.clear();
                } else {
                    content.fill(0x55);
                }
                *file.lock() = File { synced: content.clone(), content, unsynced: Vec::new() };
            }
        }
    }
}

impl Disk for Sim {
    fn open(&self, path: &Path) -> io::Result<OpenFile> {
        let mut state = self.0.lock();
        state.check()?;
        state.open(&self.0, path)
    }

    fn create(&self, path: &Path) -> io::Result<OpenFile> {
        let mut state = self.0.lock();
        state.check()?;
        if state.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(path.to_owned(), Arc::default());
        state.open(&self.0, path)
    }

    fn find(&self, path: &Path) -> io::Result<Option<Found>> {
        let mut state = self.0.lock();
        state.check()?;
        let file = state.files.get(path);
        Ok(file.map(|file| Found { id: id(file), len: file.lock().content.len() as u64 }))
    }

    fn name(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.0.lock().files.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.replace(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        state.files.remove(path);
        Ok(())
    }
}

#[derive(Debug)]
struct Handle {
    disk: Weak<Mutex<State>>,
    file: Arc<Mutex<File>>,
}

impl Handle {
    fn fault(&self) -> io::Result<Option<Fault>> {
        let disk = self.disk.upgrade().ok_or_else(|| io::Error::other("the machine is gone"))?;
        let mut state = disk.lock();
        state.check()?;
        Ok(state.fault)
    }

    fn change(&self, operation: Operation) {
        let mut file = self.file.lock();
        operation.apply(&mut file.content);
        file.unsynced.push(operation);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.file.lock();
        let bytes = file.content.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.fault()? == Some(Fault::Full) && len > self.len()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change(Operation::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut fault = self.fault()?;
        assert_ne!(fault, Some(Fault::Panics), "on purpose");
        let began = Instant::now();
        while fault == Some(Fault::Stalled) && began.elapsed() < Duration::from_secs(30) {
            thread::sleep(Duration::from_millis(1));
            fault = self.fault()?;
        }
        let mut file = self.file.lock();
        let done = std::mem::take(&mut file.unsynced);
        if fault == Some(Fault::Syncs) {
            return Err(io::Error::other("input/output error"));
        }
        done.iter().for_each(|operation| operation.apply(&mut file.synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.fault()? {
            Some(Fault::Full) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::TornWrites) => {
                let half = data.len() / 2 / SECTOR * SECTOR;
                self.change(Operation::Write(offset, data[..half].to_vec()));
                return Err(io::Error::other("input/output error"));
            }
            _ => self.change(Operation::Write(offset, data.to_vec())),
        }
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
