import { debuglog } from "node:util";

/** Where the client logs to. `console` is one. */
export interface Logger {
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
}

const log = debuglog("sessiond");

/** Prints to stderr if the environment has NODE_DEBUG=sessiond. */
export const debugLogger: Logger = {
  debug: (message) => {
    log("%s", message);
  },
  info: (message) => {
    log("%s", message);
  },
  warn: (message) => {
    log("%s", message);
  },
};
