//! Removes passwords from command line errors.

use clap::error::{ContextKind, ContextValue, Error};

/// Masks each quoted argument that may hold a password: the value of `--storage`, and anything that looks like a URL or
/// a login.
pub(crate) fn without_passwords(mut error: Error) -> Error {
    let is_of_storage = text(error.get(ContextKind::InvalidArg)).is_some_and(|arg| arg.starts_with("--storage "));
    let may_hold_password = |(kind, value)| {
        let text = text(Some(value))?;
        let hides = text.contains("://") || text.contains('@') || (is_of_storage && kind == ContextKind::InvalidValue);
        hides.then_some(kind)
    };
    let hidden: Vec<_> = error.context().filter_map(may_hold_password).collect();
    for kind in hidden {
        error.insert(kind, ContextValue::String("***".to_owned()));
    }
    error
}

fn text(value: Option<&ContextValue>) -> Option<&str> {
    match value {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}
