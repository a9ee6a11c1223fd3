import { readFileSync, statSync } from "node:fs";

import { status as Code } from "@grpc/grpc-js";

import { SessiondError } from "./errors";
import type { Logger } from "./logger";

/** Returns the token to send with the next call, if there is one. */
export type TokenSource = () => string | undefined;

/** Returns a source of one token. */
export function fixedToken(token: string | undefined): TokenSource {
  if (token !== undefined) check(token);
  return () => token;
}

/** Returns a source that reads the token from a file, again whenever the file changes. */
export function tokenFile(path: string, logger: Logger): TokenSource {
  let version = "";
  let token: string | undefined;
  const read = () => {
    const { mtimeMs, ctimeMs, ino, size } = statSync(path);
    const current = `${mtimeMs} ${ctimeMs} ${ino} ${size}`;
    if (current === version) return;
    const text = readFileSync(path, "utf8").trim();
    check(text);
    token = text;
    version = current;
  };
  try {
    read();
  } catch (error) {
    if (error instanceof SessiondError) throw error;
    throw new SessiondError(Code.INVALID_ARGUMENT, `cannot read the token in ${path}: ${String(error)}`);
  }
  return () => {
    try {
      read();
    } catch (error) {
      logger.warn(`cannot read the token file, using the last token: path=${path} error=${String(error)}`);
    }
    return token;
  };
}

function check(token: string): void {
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new SessiondError(
      Code.INVALID_ARGUMENT,
      "the token is malformed: pass it exactly as `sessiond token new` printed it",
    );
  }
}
