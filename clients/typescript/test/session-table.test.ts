import assert from "node:assert/strict";
import { test } from "node:test";

import { SessionTable } from "../src/session-table";

type Key = [number, number, number, number];

/** A small linear congruential generator, so that a failure comes again. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test("the table agrees with a Map after every step", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const below = random(seed);
    const table = new SessionTable();
    const model = new Map<string, number>();
    const words = [0, 1, -1, 2 ** 31 - 1, -(2 ** 31), 7, 8, 9];
    const word = () => words[below(words.length)] ?? 0;
    for (let step = 0; step < 5000; step++) {
      const key: Key = [word(), word(), word(), word()];
      const before = model.get(key.join()) ?? 0;
      // Grow for a while, then shrink.
      if (below(10) < (step % 1000 < 600 ? 7 : 2)) {
        const value = 1 + below(1000);
        assert.equal(table.set(...key, value), before);
        model.set(key.join(), value);
      } else {
        assert.equal(table.delete(...key), before);
        model.delete(key.join());
      }
      assert.equal(table.get(...key), model.get(key.join()) ?? 0);
      assert.equal(table.size, model.size);
    }
    const entries = [...table].map(([a, b, c, d, value]): [string, number] => [[a, b, c, d].join(), value]);
    assert.deepEqual(new Map(entries), model);
    assert.equal(entries.length, model.size);
    for (const [key, value] of model) assert.equal(table.get(...(key.split(",").map(Number) as Key)), value);
  }
});

test("ids that differ in one word only do not slow the table down", () => {
  for (const spread of [0, 1, 2, 3]) {
    const table = new SessionTable();
    const begun = performance.now();
    for (let i = 0; i < 200_000; i++) {
      const key: Key = [0, 0, 0, 0];
      key[spread] = i;
      table.set(...key, 1);
    }
    assert.equal(table.size, 200_000);
    assert.ok(performance.now() - begun < 2000);
  }
});
