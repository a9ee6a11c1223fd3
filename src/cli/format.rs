//! What the client commands print: lines for people, or JSON.

use std::fmt::{Display, Write as _};

use clap::ValueEnum;

/// The form of the lines on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line. 64-bit numbers are strings, because JavaScript rounds larger ones.
    Json,
}

/// Writes one JSON object on a line of its own, its members in the order in which they are added.
#[must_use = "the line ends with `end`"]
pub(crate) struct JsonLine<'a> {
    out: &'a mut String,
    empty: bool,
}

impl<'a> JsonLine<'a> {
    pub(crate) fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// A 64-bit number, as the string that the proto3 JSON mapping makes of it.
    pub(crate) fn int64(mut self, name: &str, value: impl Display) -> Self {
        self.name(name);
        // Writing to a `String` cannot fail, here and below.
        let _ = write!(self.out, "\"{value}\"");
        self
    }

    pub(crate) fn int64_if(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.int64(name, value),
            None => self,
        }
    }

    /// A number that JavaScript can hold, or a boolean.
    pub(crate) fn plain(mut self, name: &str, value: impl Display) -> Self {
        self.name(name);
        let _ = write!(self.out, "{value}");
        self
    }

    pub(crate) fn text(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        let _ = write!(self.out, "{}", serde_json::Value::from(value));
        self
    }

    pub(crate) fn text_if(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    pub(crate) fn end(self) {
        self.out.push_str("}\n");
    }

    fn name(&mut self, name: &str) {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
        let _ = write!(self.out, "\"{name}\":");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object() {
        let mut out = String::new();
        JsonLine::begin(&mut out)
            .text("error", "a \"quote\"\nand a line")
            .int64("session_id", i64::MIN)
            .plain("created", true)
            .text_if("cursor", None)
            .end();
        let line =
            "{\"error\":\"a \\\"quote\\\"\\nand a line\",\"session_id\":\"-9223372036854775808\",\"created\":true}\n";
        assert_eq!(out, line);
        assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok());
    }
}
