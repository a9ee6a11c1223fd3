//! The order of the crate's modules, read from its sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module of the crate, and the modules of the crate that it may name.
const MAY_NAME: [(&str, &[&str]); 15] = [
    // Protobuf's durations, as both ends read them.
    ("duration", &[]),
    ("histogram", &[]),
    ("random", &[]),
    ("relay", &[]),
    ("vital", &[]),
    ("access", &[]),
    ("session", &[]),
    ("storage", &["random", "relay", "session", "vital"]),
    ("subject", &["histogram", "relay", "session", "storage", "vital"]),
    // Both ends read it.
    ("reason", &["proto"]),
    ("status", &["access", "reason", "storage", "subject"]),
    ("service", &["duration", "histogram", "proto", "reason", "session", "status", "storage", "subject"]),
    ("server", &["access", "proto", "service", "session", "status", "storage", "subject", "vital"]),
    ("client", &["duration", "proto", "reason", "session"]),
    // A program beside the library, which names it from the outside.
    ("cli", &["cli"]),
];

/// The modules that know no protocol.
const WITHOUT_GRPC: [&str; 3] = ["session", "storage", "subject"];

const GRPC: [&str; 6] = ["tonic", "prost", "hyper", "h2::", "http::", "proto::"];

/// The code of a module's files, without comments.
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

/// The modules of the crate that are named: those in `crate::{a, b::{c}}`, and the one in `crate::a`. A macro, as in
/// `$crate::a!`, is exported from the crate's root wherever it is.
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
fn names_are_found_in_every_form_of_import() {
    let code = "use crate::{\n    a::{self, x, y::{z, w}},\n    b,\n};\nuse crate::c::D; fn f() { crate::e::g(); crate::m!() }";
    assert!(named(code).iter().eq(["a", "b", "c", "e"]));
}

#[test]
fn imports_run_one_way() {
    for (module, may_name) in MAY_NAME {
        for (file, code) in sources(module) {
            for name in named(&code) {
                let is_its_own = name == module;
                assert!(is_its_own || may_name.contains(&&*name), "{} names {name}", file.display());
            }
        }
    }
}

#[test]
fn every_module_of_the_crate_has_its_place_in_the_order() {
    let lib = sources("lib").remove(0).1;
    let modules = lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in modules {
        assert!(MAY_NAME.iter().any(|(name, _)| *name == module), "{module}");
    }
}

/// All else is timed by a clock that nobody sets: a wall clock that jumps ends no lease, no call and no connection. A file
/// keeps the end of a linger as a wall time, which is read when the file is opened.
#[test]
fn only_who_may_call_and_what_outlives_the_process_go_by_the_wall_clock() {
    for (module, _) in MAY_NAME {
        for (file, code) in sources(module) {
            let places = ["server/gate.rs", "file/downtime.rs", "tests/downtime.rs", "journal/wall.rs"];
            let may = places.iter().any(|may| file.ends_with(may));
            let may = may || module == "access";
            assert!(may || !code.contains("SystemTime"), "{} asks the wall clock", file.display());
        }
    }
}

#[test]
fn sessions_storages_and_subjects_know_no_protocol() {
    for module in WITHOUT_GRPC {
        for (file, code) in sources(module) {
            for word in GRPC {
                assert!(!code.contains(word), "{} mentions {word}", file.display());
            }
        }
    }
}
