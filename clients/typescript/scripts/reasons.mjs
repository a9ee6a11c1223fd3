// Reads the table of error reasons from the comments in error_reason.proto.

const RETRY = { no: "never", "with backoff": "backoff", "after RetryInfo": "retry-info" };

/** Returns the source of reasons.ts. Throws if a reason does not say whether to retry. */
export function reasonTable(proto) {
  const rows = [];
  let comment = [];
  for (const line of proto.split("\n").map((text) => text.trim())) {
    if (line.startsWith("//")) {
      comment.push(line.slice(2).trim());
      continue;
    }
    const name = /^ERROR_REASON_(\w+) = \d+;$/.exec(line)?.[1];
    if (name !== undefined && name !== "UNSPECIFIED") {
      const words = /Retry: ([^.]*)\.$/.exec(comment.join(" "))?.[1];
      const retry = RETRY[words];
      if (retry === undefined) throw new Error(`${name} does not say whether to retry`);
      rows.push(`  ${name}: "${retry}",`);
    }
    comment = [];
  }
  if (rows.length === 0) throw new Error("error_reason.proto has no reasons");
  return `// Code generated from error_reason.proto by npm run generate. DO NOT EDIT.

/** Whether to retry the same call: never, with backoff, or after the delay in the error's RetryInfo. */
export type Retry = "never" | "backoff" | "retry-info";

/** Every reason that this version knows. */
export const REASONS: Readonly<Record<string, Retry>> = {
${rows.join("\n")}
};
`;
}
