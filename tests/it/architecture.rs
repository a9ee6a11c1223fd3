//! Checks that the crate's modules depend on each other in one direction, by reading the sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module of the crate, and the other modules that it may use.
const MAY_NAME: [(&str, &[&str]); 15] = [
    // Reads protobuf durations, for the server and the client.
    ("duration", &[]),
    ("histogram", &[]),
    ("random", &[]),
    ("relay", &[]),
    ("vital", &[]),
    ("access", &[]),
    ("session", &[]),
    ("storage", &["random", "relay", "session", "vital"]),
    ("subject", &["histogram", "relay", "session", "storage", "vital"]),
    // Used by the server and the client.
    ("reason", &["proto"]),
    ("status", &["access", "reason", "storage", "subject"]),
    ("service", &["duration", "histogram", "proto", "reason", "session", "status", "storage", "subject"]),
    ("server", &["access", "proto", "service", "session", "status", "storage", "subject", "vital"]),
    ("client", &["duration", "proto", "reason", "session"]),
    // Part of the program, which uses the library from outside.
    ("cli", &["cli"]),
];

/// The modules that must not depend on gRPC.
const WITHOUT_GRPC: [&str; 3] = ["session", "storage", "subject"];

const GRPC: [&str; 6] = ["tonic", "prost", "hyper", "h2::", "http::", "proto::"];

/// Returns the code of each file of a module, without comments.
fn sources(module: &str) -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![src.join(format!("{module}.rs"))];
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let code = |text: String| -> String {
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
    };
    files.into_iter().map(|file| (file.clone(), code(fs::read_to_string(&file).unwrap()))).collect()
}

/// Returns the modules of the crate that the code uses: `a` and `b` in `crate::{a, b::{c}}`, and `a` in `crate::a`.
/// Macros (`$crate::a!`) are skipped: they are exported from the crate's root, whatever module defines them.
fn named(code: &str) -> BTreeSet<String> {
    let ident = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            let name = ident(rest);
            if !rest[name.len()..].starts_with('!') {
                names.insert(name);
            }
            continue;
        };
        let (mut depth, mut is_first) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_first = true,
                _ if is_first && !c.is_whitespace() => {
                    names.insert(ident(&list[at..]));
                    is_first = false;
                }
                _ => {}
            }
        }
    }
    names
}

#[test]
fn modules_are_found_in_every_form_of_import() {
    let code = "use crate::{\n    a::{self, x, y::{z, w}},\n    b,\n};\nuse crate::c::D; fn f() { crate::e::g(); crate::m!() }";
    assert!(named(code).iter().eq(["a", "b", "c", "e"]));
}

#[test]
fn imports_run_one_way() {
    for (module, may_name) in MAY_NAME {
        for (file, code) in sources(module) {
            for name in named(&code) {
                let is_its_own = name == module;
                assert!(is_its_own || may_name.contains(&&*name), "{} must not use {name}", file.display());
            }
        }
    }
}

#[test]
fn every_public_module_is_listed_in_may_name() {
    let lib = sources("lib").remove(0).1;
    let modules = lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(MAY_NAME.iter().any(|(name, _)| *name == module), "add {module} to MAY_NAME");
    }
}

/// Everything else uses a monotonic clock, so a wall clock that jumps ends no lease, call or connection. The file
/// storage keeps the end of a linger as a wall time, which it reads when it opens the file.
#[test]
fn only_access_control_and_persisted_times_read_the_wall_clock() {
    for (module, _) in MAY_NAME {
        for (file, code) in sources(module) {
            let places = ["server/gate.rs", "file/downtime.rs", "tests/downtime.rs", "journal/wall.rs"];
            let may = places.iter().any(|may| file.ends_with(may));
            let may = may || module == "access";
            assert!(may || !code.contains("SystemTime"), "{} reads the wall clock", file.display());
        }
    }
}

#[test]
fn session_storage_and_subject_do_not_depend_on_grpc() {
    for module in WITHOUT_GRPC {
        for (file, code) in sources(module) {
            for word in GRPC {
                assert!(!code.contains(word), "{} mentions {word}", file.display());
            }
        }
    }
}
