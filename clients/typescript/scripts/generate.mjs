// Generates src/generated from the protos of the server. With --check, only says whether the files are up to date.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

import { reasonTable } from "./reasons.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const protos = join(root, "../../proto");
const target = join(root, "src/generated");

const options = [
  "env=node",
  "esModuleInterop=true",
  "forceLong=bigint",
  "oneof=unions",
  "outputServices=none",
  "outputJsonMethods=false",
  "outputPartialMethods=false",
  "outputTypeRegistry=false",
  "enumsAsLiterals=true",
  "removeEnumPrefix=true",
  "unrecognizedEnum=false",
  "annotateFilesWithVersion=false",
];

function generateInto(folder) {
  for (const input of [protos, join(root, "proto")]) {
    const template = {
      version: "v2",
      plugins: [{ local: join(root, "node_modules/.bin/protoc-gen-ts_proto"), out: folder, opt: options }],
    };
    const run = spawnSync(
      join(root, "node_modules/.bin/buf"),
      ["generate", input, "--template", JSON.stringify(template), "--include-imports", "--include-wkt"],
      { stdio: "inherit" },
    );
    if (run.status !== 0) throw new Error("buf generate failed");
  }
  const table = reasonTable(readFileSync(join(protos, "sessiond/v1/error_reason.proto"), "utf8"));
  writeFileSync(join(folder, "reasons.ts"), table);
}

function contents(folder) {
  const files = new Map();
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  for (const entry of entries) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    files.set(relative(folder, path), readFileSync(path, "utf8"));
  }
  return files;
}

const fresh = mkdtempSync(join(tmpdir(), "sessiond-generate-"));
try {
  generateInto(fresh);
  const generated = contents(fresh);
  if (process.argv.includes("--check")) {
    const present = contents(target);
    const stale = [...new Set([...generated.keys(), ...present.keys()])].filter(
      (file) => generated.get(file) !== present.get(file),
    );
    if (stale.length > 0) {
      console.error(`src/generated is out of date: run npm run generate\n  ${stale.join("\n  ")}`);
      process.exitCode = 1;
    }
  } else {
    rmSync(target, { recursive: true, force: true });
    for (const [file, text] of generated) {
      mkdirSync(dirname(join(target, file)), { recursive: true });
      writeFileSync(join(target, file), text);
    }
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
