"""Writes a file as a TypeScript program that compiles only if the file has the type that its vendor publishes.

Usage: typed.py TYPE MODULE FILE. FILE is YAML or JSON, and TYPE is Name or Name<Other>. The TypeScript compiler then
reports unknown fields and wrong values, each with its location.
"""

import json
import re
import sys

import yaml

# In JSON an enumeration is written as its value.
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
