//! Checks that the crate's modules depend on each other in one direction, as in ARCHITECTURE.md's picture, by parsing the
//! sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    ItemMod, Macro, UseTree,
    visit::{self, Visit},
};

/// Each module of the crate, and the other modules of the crate that it may use.
const MAY_USE: [(&str, &[&str]); 19] = [
    ("backoff", &[]),
    ("codec", &[]),
    // Reads protobuf durations, for the server and the client.
    ("duration", &[]),
    ("histogram", &[]),
    ("random", &[]),
    ("relay", &[]),
    ("reset", &[]),
    ("setters", &[]),
    // Holds sessions, for the memory storage and the client's mirror.
    ("table", &["random", "session"]),
    ("vital", &[]),
    ("access", &[]),
    ("session", &[]),
    ("storage", &["backoff", "random", "relay", "session", "table", "vital"]),
    ("subject", &["backoff", "histogram", "relay", "reset", "session", "storage", "vital"]),
    // Used by the server and the client.
    ("reason", &["proto"]),
    ("service", &["access", "duration", "histogram", "proto", "reason", "session", "storage", "subject"]),
    ("server", &["access", "backoff", "proto", "reset", "service", "session", "storage", "subject", "vital"]),
    ("client", &["backoff", "duration", "proto", "reason", "reset", "session", "table"]),
    // Part of the program, which uses the library from outside.
    ("cli", &[]),
];

/// The modules that must not depend on gRPC.
const WITHOUT_GRPC: [&str; 3] = ["session", "storage", "subject"];

const GRPC: [&str; 7] = ["tonic", "tonic_prost", "tonic_types", "prost", "prost_types", "hyper", "http"];

/// The files that may read the wall clock, and why.
const WALL_CLOCK: [&str; 4] = [
    // A token expires at a wall-clock time.
    "src/access/",
    "src/server/admission/gate.rs",
    // Times that outlive the process.
    "src/storage/file/tests/downtime.rs",
    "src/storage/journal/wall.rs",
];

/// The paths that a file uses, as lists of their segments. Paths that start with `self`, `super` or `crate` start with `crate`.
struct Paths {
    /// The path of the module that is visited.
    here: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    fn add(&mut self, segments: Vec<String>) {
        let mut absolute = match segments.first().map(String::as_str) {
            Some("self" | "super") => self.here.clone(),
            _ => Vec::new(),
        };
        for segment in segments {
            match segment.as_str() {
                "super" => drop(absolute.pop()),
                "self" => {}
                _ => absolute.push(segment),
            }
        }
        self.found.push(absolute);
    }

    fn add_tree(&mut self, mut before: Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.add_tree(before, &path.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before.clone(), tree)),
            UseTree::Name(name) => {
                before.push(name.ident.to_string());
                self.add(before);
            }
            UseTree::Rename(rename) => {
                before.push(rename.ident.to_string());
                self.add(before);
            }
            UseTree::Glob(_) => self.add(before),
        }
    }

    /// Macros are not parsed: in their tokens, identifiers with `::` between them are a path. A path before `!` names a macro,
    /// which is in the crate's root wherever it is defined.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Punct(punct) if punct.as_char() == '!' => path.clear(),
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.add(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.add(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add(path);
    }
}

impl Visit<'_> for Paths {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        self.here.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.here.pop();
    }

    fn visit_use_tree(&mut self, tree: &UseTree) {
        self.add_tree(Vec::new(), tree);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &Macro) {
        // Not its path: a macro is in the crate's root wherever it is defined.
        self.add_tokens(called.tokens.clone());
    }
}

fn paths(code: &str, here: &[&str]) -> Vec<Vec<String>> {
    let here = ["crate"].iter().chain(here).map(|name| (*name).to_owned()).collect();
    let mut paths = Paths { here, found: Vec::new() };
    paths.visit_file(&syn::parse_file(code).unwrap());
    paths.found
}

/// The modules of the crate that a file uses.
fn used(paths: &[Vec<String>]) -> BTreeSet<&str> {
    let of_crate = paths.iter().filter_map(|path| path.strip_prefix(&["crate".to_owned()][..])?.first());
    of_crate.map(String::as_str).collect()
}

/// A file of a module, relative to the crate, and the paths that it uses.
struct File {
    path: PathBuf,
    paths: Vec<Vec<String>>,
}

fn files(module: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join(format!("src/{module}.rs"))];
    let mut folders = vec![root.join("src").join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("rs") => files.push(path),
                _ => {}
            }
        }
    }
    let parsed = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_owned();
        let module = path.with_extension("");
        let here: Vec<_> = module.iter().skip(1).map(|name| name.to_str().unwrap()).collect();
        File { paths: paths(&fs::read_to_string(&file).unwrap(), &here), path }
    };
    files.into_iter().map(parsed).collect()
}

#[test]
fn paths_are_found_in_every_form() {
    let code = "
        use crate::{a::{self, x, y::{z, w}}, b};
        use crate::c::D as E;
        use super::super::d::*;
        fn f() { crate::e::g(); select! { one = crate::h::i(1) => super::super::j::k(), two = crate::n!() } }
        mod tests { use super::super::super::l; use super::m; }
    ";
    let paths = paths(code, &["here", "there"]);
    assert!(used(&paths).into_iter().eq(["a", "b", "c", "d", "e", "h", "here", "j", "l"]));
}

#[test]
fn modules_use_each_other_in_one_direction() {
    for (module, may_use) in MAY_USE {
        for file in files(module) {
            for used in used(&file.paths) {
                let may = used == module || may_use.contains(&used);
                assert!(may, "{} uses {used}: see MAY_USE", file.path.display());
            }
        }
    }
}

#[test]
fn every_module_is_listed_in_may_use() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for item in syn::parse_file(&lib).unwrap().items {
        if let syn::Item::Mod(module) = item
            && module.content.is_none()
        {
            assert!(MAY_USE.iter().any(|(name, _)| module.ident == name), "{} has no place in MAY_USE", module.ident);
        }
    }
}

/// Everything else uses the monotonic clock: a wall clock that jumps ends no lease, no call and no connection.
#[test]
fn only_access_control_and_persisted_times_read_the_wall_clock() {
    for (module, _) in MAY_USE {
        for file in files(module) {
            let may = WALL_CLOCK.iter().any(|may| file.path.starts_with(may));
            let does = file.paths.iter().flatten().any(|segment| segment == "SystemTime");
            assert!(may || !does, "{} uses the wall clock", file.path.display());
        }
    }
}

#[test]
fn session_storage_and_subject_do_not_depend_on_grpc() {
    for module in WITHOUT_GRPC {
        for file in files(module) {
            for path in &file.paths {
                let name = path.iter().find(|segment| *segment != "crate").map_or("", String::as_str);
                let is_grpc = path.len() > 1 && (GRPC.contains(&name) || name == "proto");
                assert!(!is_grpc, "{} uses {}", file.path.display(), path.join("::"));
            }
        }
    }
}
