// Builds dist: CommonJS with types, and an ES module that re-exports it. There is one copy of the code, so that an
// application that uses both gets the same classes.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(root, "dist");

rmSync(dist, { recursive: true, force: true });
const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin/tsc");
const run = spawnSync(process.execPath, [tsc, "-p", join(root, "tsconfig.build.json")], { stdio: "inherit" });
if (run.status !== 0) process.exit(1);

const names = Object.keys(createRequire(import.meta.url)(join(dist, "index.js"))).sort();
writeFileSync(join(dist, "index.mjs"), `export {\n${names.map((name) => `  ${name},\n`).join("")}} from "./index.js";\n`);
writeFileSync(join(dist, "index.d.mts"), `export * from "./index.js";\n`);
