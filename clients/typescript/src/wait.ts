/** Waits until a time or until it is woken, whichever comes first. */
export class Waiter {
  private finish: ((isTimeout: boolean) => void) | undefined;

  /** Waits until `performance.now()` is `until`. Returns whether that time has come. */
  wait(until: number): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.finish?.(true), Math.max(0, Math.min(until - performance.now(), MAX_TIMER_MS)));
      this.finish = (isTimeout) => {
        clearTimeout(timer);
        this.finish = undefined;
        resolve(isTimeout);
      };
    });
  }

  /** Wakes whoever waits. */
  wake(): void {
    this.finish?.(false);
  }
}

/** The longest time that setTimeout can wait. */
const MAX_TIMER_MS = 2 ** 31 - 1;
