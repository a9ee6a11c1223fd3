import type { TestContext } from "node:test";

type Step = () => unknown;

const steps = new WeakMap<TestContext, Step[]>();

/** Runs `step` after the test: the last one first, so that clients end before their servers. */
export function cleanUp(test: TestContext, step: Step): void {
  const known = steps.get(test);
  if (known) {
    known.push(step);
    return;
  }
  const own = [step];
  steps.set(test, own);
  test.after(async () => {
    for (const last of own.reverse()) await last();
  });
}
