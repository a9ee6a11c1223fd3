//! The scripts that Redis runs, each in one step.
//!
//! Scripts and not functions: a function stays in Redis, in one version for all replicas of sessiond, old ones and new ones
//! alike, while a script is named by its own hash and comes with the caller. Every key that a script touches is declared,
//! so that a cluster that is moving them refuses it before its first step and not in the midst.

use redis::{Cmd, ToRedisArgs};

/// A script, named by its hash.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// A call with so many keys: they are the first arguments.
    pub(super) fn call(&self, keys: usize) -> Call<'_> {
        let mut by_hash = Cmd::new();
        by_hash.arg("EVALSHA").arg(&self.hash).arg(keys);
        Call { script: self, by_hash }
    }
}

/// A script with its keys and arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    by_hash: Cmd,
}

impl Call<'_> {
    pub(super) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.by_hash.arg(arg);
        self
    }

    pub(super) fn by_hash(&self) -> &Cmd {
        &self.by_hash
    }

    /// The same with the script's code, for a Redis that does not know its hash: it does from then on.
    pub(super) fn by_code(&self) -> Cmd {
        let mut by_code = Cmd::new();
        by_code.arg("EVAL").arg(self.script.code);
        for arg in self.by_hash.args_iter().skip(2) {
            if let redis::Arg::Simple(arg) = arg {
                by_code.arg(arg);
            }
        }
        by_code
    }

    /// The first key, which says where in a cluster the call goes.
    pub(super) fn key(&self) -> &[u8] {
        match self.by_hash.args_iter().nth(3) {
            Some(redis::Arg::Simple(key)) => key,
            _ => &[],
        }
    }
}

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = [$($file:literal),+];)+) => {
        /// All scripts, each under the name of its file, which says what it takes and gives.
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
    registry_move = ["registry_move"];
    registry_mark = ["same_registry", "registry_mark"];
    partition_join = ["partition_join"];
    partition_follow = ["partition_follow"];
    partition_wipe = ["partition_wipe"];
    apply = ["same_registry", "change_log", "apply"];
    read = ["same_registry", "read"];
    extent = ["same_registry", "extent"];
    changes = ["same_registry", "changes"];
    lease_grant = ["same_registry", "lease_grant"];
    lease_keep = ["same_registry", "lease_keep"];
    lease_attach = ["same_registry", "lease_attach"];
    lease_adopt = ["same_registry", "lease_adopt"];
    lease_revoke = ["same_registry", "lease_end", "lease_revoke"];
    lease_expire = ["same_registry", "lease_end", "lease_expire"];
    lease_claim = ["same_registry", "lease_claim"];
    lease_done = ["same_registry", "lease_done"];
    lease_close = ["same_registry", "lease_close"];
    lease_sweep = ["same_registry", "change_log", "lease_sweep"];
    lease_swept = ["same_registry", "lease_swept"];
    lease_orphans = ["same_registry", "lease_orphans"];
    quota_raise = ["same_registry", "quota_raise"];
    quota_set = ["same_registry", "quota_set"];
    quota_lower = ["same_registry", "quota_lower"];
    quota_return = ["same_registry", "quota_return"];
}
