//! Output formats of the client commands: text for people, or JSON.

use std::fmt::{Display, Write as _};

use clap::ValueEnum;

/// The format of the lines on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// One JSON object per line. 64-bit numbers are strings, because JavaScript rounds large numbers.
    Json,
}

/// Writes one JSON object on its own line, with its members in the order in which they are added.
#[must_use = "call `end` to finish the line"]
pub(crate) struct JsonLine<'a> {
    out: &'a mut String,
    empty: bool,
}

impl<'a> JsonLine<'a> {
    pub(crate) fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// Adds a 64-bit number as a string, like the JSON mapping of proto3.
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

    /// Adds a boolean, or a number that JavaScript can represent.
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
