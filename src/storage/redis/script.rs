//! The Lua scripts, each of which Redis runs atomically.
//!
//! They are not Redis functions: Redis keeps a single version of a function, but sessiond replicas of different
//! versions must run side by side. A script is identified by its hash, and each replica brings its own scripts.
//!
//! Each script declares every key that it uses. If a cluster is migrating some of these keys, it rejects the script
//! before the first command rather than halfway through.

use redis::{Cmd, ToRedisArgs};

/// A script, identified by its hash.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Starts a call. Its first `keys` arguments are the keys.
    pub(super) fn call(&self, keys: usize) -> Call {
        let mut by_hash = Cmd::new();
        by_hash.arg("EVALSHA").arg(&self.hash).arg(keys);
        Call { code: self.code, by_hash }
    }
}

/// A call of a script: its keys and arguments.
pub(super) struct Call {
    code: &'static str,
    by_hash: Cmd,
}

impl Call {
    pub(super) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.by_hash.arg(arg);
        self
    }

    pub(super) fn by_hash(&self) -> &Cmd {
        &self.by_hash
    }

    /// Returns the same call with the script's code, for a Redis that does not have the script yet.
    pub(super) fn by_code(&self) -> Cmd {
        let mut by_code = Cmd::new();
        by_code.arg("EVAL").arg(self.code);
        for arg in self.by_hash.args_iter().skip(2) {
            if let redis::Arg::Simple(arg) = arg {
                by_code.arg(arg);
            }
        }
        by_code
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = [$($file:literal),+];)+) => {
        /// All scripts. Each is named after the file that documents its keys, arguments and result.
        pub(super) struct Scripts {
            $($(#[$doc])* pub(super) $name: Script,)+
        }

        impl Scripts {
            pub(super) fn new() -> Self {
                Self { $($name: Script::new(concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+)),)+ }
            }
        }
    };
}

scripts! {
    registry_open = ["registry_open"];
    registry_move = ["head", "begin_release", "registry_move"];
    registry_mark = ["head", "begin_release", "registry_mark"];
    partition_join = ["partition_join"];
    partition_disown = ["partition_disown"];
    partition_wipe = ["partition_wipe"];
    partition_mend = ["head", "partition_mend"];
    apply = ["head", "append", "apply"];
    read = ["head", "mark_at", "read"];
    extent = ["head", "mark_at", "fits", "extent"];
    marks = ["head", "mark_at", "holds_tail", "marks"];
    changes = ["head", "mark_at", "holds_tail", "changes"];
    lease_grant = ["head", "lease_clock", "lease_ids", "adopt", "lease_grant"];
    lease_keep = ["head", "lease_clock", "lease_keep"];
    lease_attach = ["head", "lease_attach"];
    lease_adopt = ["head", "fits", "adopt", "lease_adopt"];
    lease_revoke = ["head", "lease_clock", "lease_end", "lease_revoke"];
    lease_look = ["head", "lease_clock", "lease_end", "lease_look"];
    lease_close = ["head", "begin_release", "lease_close"];
    lease_ended = ["head", "lease_clock", "lease_ids", "lease_ended"];
    lease_claim = ["head", "lease_claim"];
    lease_find = ["head", "mark_at", "fits", "lease_find"];
    lease_sweep = ["head", "append", "lease_sweep"];
    lease_swept = ["head", "lease_swept"];
    lease_done = ["head", "lease_done"];
    lease_orphans = ["head", "begin_release", "lease_end", "lease_orphans"];
    lease_mend = ["head", "lease_clock", "lease_ids", "lease_mend"];
    lease_list = ["head", "lease_clock", "lease_list"];
    lease_held = ["head", "lease_held"];
    lease_slots = ["head", "lease_slots"];
    quota_raise = ["head", "quota_raise"];
    quota_set = ["head", "quota_set"];
    quota_lower = ["head", "begin_release", "quota_lower"];
    quota_return = ["head", "begin_release", "quota_return"];
    probe_write = ["head", "probe_write"];
    probe_permissions = ["probe_permissions"];
}
