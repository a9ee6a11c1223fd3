//! The memory that this process may use, and the defaults derived from it.

use std::{fs, path::Path};

/// Returns the memory that this process may use: the smallest of the machine's memory, its container's limit (cgroup
/// version 1 or 2), and its address space limit. Returns `None` if none of them is known.
pub(crate) fn limit() -> Option<u64> {
    limit_in(Path::new("/"))
}

/// The defaults of the flags that limit memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub(crate) retain_bytes: u64,
    pub(crate) max_pending_bytes: u64,
    pub(crate) max_total_filter_ids: u64,
}

impl Defaults {
    /// Returns the defaults for a process that may use this much memory. They leave more than half of it for sessions
    /// and connections.
    pub(crate) fn of(memory: Option<u64>) -> Self {
        let share = |part: u64| memory.map_or(u64::MAX, |memory| memory / part);
        Self {
            retain_bytes: share(4).min(256 << 20),
            max_pending_bytes: share(8).min(1 << 30),
            // An id takes about a hundred bytes. However little memory there is, 2^20 ids are allowed.
            max_total_filter_ids: share(512).clamp(1 << 20, 1 << 30),
        }
    }
}

fn limit_in(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap_or_default();
    let number = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok();
    let line = |path: &str, name: &str| read(path).lines().find_map(|line| number(line.strip_prefix(name)?));

    let machine = line("proc/meminfo", "MemTotal:").and_then(|kib| kib.checked_mul(1024));
    let address_space = line("proc/self/limits", "Max address space");
    let groups = read("proc/self/cgroup");
    let groups = groups.lines().filter_map(|line| {
        // A line has the number of a hierarchy, its controllers (none in version 2), and the path of the group.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (folder, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // The limits of all parent groups apply too. In a container only the lowest groups are visible, perhaps mounted
        // at the root.
        let groups = Path::new(path).ancestors().chain([Path::new("/")]);
        groups.filter_map(|group| number(&read(&format!("{folder}{}/{file}", group.display())))).min()
    });
    groups.chain(machine).chain(address_space).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_in(root.path())
    }

    #[test]
    fn defaults_fit_into_a_small_container_and_are_capped_on_a_large_machine() {
        let small = Defaults { retain_bytes: 128 << 20, max_pending_bytes: 64 << 20, max_total_filter_ids: 1 << 20 };
        assert_eq!(Defaults::of(Some(512 << 20)), small);
        let large = Defaults { retain_bytes: 256 << 20, max_pending_bytes: 1 << 30, max_total_filter_ids: 1 << 26 };
        assert_eq!(Defaults::of(Some(32 << 30)), large);
        assert_eq!(Defaults::of(None), Defaults { max_total_filter_ids: 1 << 30, ..large });
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n");

    #[test]
    fn smallest_limit_applies() {
        assert_eq!(limit_with(&[]), None);
        assert_eq!(limit_with(&[MACHINE]), Some(16_000_000 << 10));
        let limits = "Limit  Soft Limit\nMax address space         2048000000           unlimited            bytes\n";
        assert_eq!(limit_with(&[MACHINE, ("proc/self/limits", limits)]), Some(2_048_000_000));
        let limits = "Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(limit_with(&[MACHINE, ("proc/self/limits", limits)]), Some(16_000_000 << 10));
    }

    #[test]
    fn limits_of_the_cgroup_and_its_parents_apply() {
        let group = ("proc/self/cgroup", "0::/pod/container\n");
        let max = |folder: &'static str, text: &'static str| (folder, text);
        let pod = max("sys/fs/cgroup/pod/memory.max", "1000000\n");
        assert_eq!(
            limit_with(&[MACHINE, group, pod, ("sys/fs/cgroup/pod/container/memory.max", "max\n")]),
            Some(1_000_000)
        );
        assert_eq!(
            limit_with(&[MACHINE, group, pod, ("sys/fs/cgroup/pod/container/memory.max", "500000\n")]),
            Some(500_000)
        );
        // The process's own group is the root of what it sees.
        let inside = ("proc/self/cgroup", "0::/\n");
        assert_eq!(limit_with(&[MACHINE, inside, ("sys/fs/cgroup/memory.max", "536870912\n")]), Some(512 << 20));
        // Version 1: a very large number means no limit, and the path may be the host's.
        let old = ("proc/self/cgroup", "4:cpu,cpuacct:/\n3:memory:/docker/abc\n");
        let all = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit_with(&[MACHINE, old, all]), Some(16_000_000 << 10));
        assert_eq!(limit_with(&[MACHINE, old, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n")]), Some(7000));
    }
}
