"""Writes files as a TypeScript program that compiles only if they fit the types that their makers publish.

Usage: typed.py TYPE MODULE FILE, with FILE in YAML or JSON and TYPE of the form of Name or Name<Other>. TypeScript says of a field
that the type does not have, or that has a wrong value, where it is.
"""

import json
import re
import sys

import yaml

# Enumerations in JSON are their values.
PLAIN = """
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer Item)[] ? Plain<Item>[] : T extends object ? { [Key in keyof T]: Plain<T[Key]> } : T;
"""


def main():
    name, module, file = sys.argv[1:]
    with open(file, encoding="utf-8") as opened:
        value = yaml.safe_load(opened)
    imports = ", ".join(re.findall(r"[A-Z]\w+", name))
    print(f'import type {{ {imports} }} from "{module}";')
    print(PLAIN)
    print(f"export const value: Plain<{name}> = {json.dumps(value, indent=1, ensure_ascii=False)};")


main()
