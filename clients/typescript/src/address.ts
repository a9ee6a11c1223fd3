import { status as Code } from "@grpc/grpc-js";

import { SessiondError } from "./errors";

/** A server address as grpc-js takes it. */
export interface Address {
  readonly target: string;
  readonly isTls: boolean;
}

/** Parses `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. */
export function parseAddress(address: string): Address {
  if (/^unix:(?!\/*$)./.test(address)) return { target: address, isTls: false };
  const url = URL.canParse(address) ? new URL(address) : undefined;
  if (url === undefined || !["http:", "https:"].includes(url.protocol) || url.hostname === "" || hasPath(url)) {
    throw new SessiondError(
      Code.INVALID_ARGUMENT,
      `${JSON.stringify(address)} is not a server address: use http://HOST:PORT, https://HOST:PORT for TLS, or unix:PATH`,
    );
  }
  const isTls = url.protocol === "https:";
  return { target: `dns:${url.hostname}:${url.port || (isTls ? "443" : "80")}`, isTls };
}

function hasPath({ pathname, search }: URL): boolean {
  return pathname.length > 1 || search !== "";
}
