"""Fails unless every crate in the output of `cargo metadata` (standard input) has a licence that an MIT program may use."""

import json
import re
import sys

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "Unicode-3.0",
    "Unlicense", "Zlib",
}


def allowed(expression):
    """Whether an SPDX expression can be met: one side of each OR, both sides of each AND. Old crates write / for OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        result = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = conjunction() or result
        return result

    def conjunction():
        result = term()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = term() and result
        return result

    def term():
        token = tokens.pop(0)
        if token == "(":
            result = alternatives()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":  # an exception only adds permissions
            del tokens[:2]
        return token in ALLOWED

    return alternatives() and not tokens


metadata = json.load(sys.stdin)
resolved = {node["id"] for node in metadata["resolve"]["nodes"]}
packages = [package for package in metadata["packages"] if package["id"] in resolved]
refused = [package for package in packages if not allowed(package["license"] or "none")]
for package in refused:
    print(f"{package['name']} {package['version']}: {package['license']}")
print(f"{len(packages)} crates, {len(refused)} with a licence that is not allowed")
sys.exit(bool(refused))
