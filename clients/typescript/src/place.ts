import type { Place as ProtoPlace } from "./generated/sessiond/v1/session_service";

/** A position in one partition of the change log. Within one partition of one registry, positions only grow. */
export interface Place {
  readonly partition: number;
  readonly position: bigint;
}

/** Converts places from the wire. */
export function toPlaces(places: readonly ProtoPlace[]): Place[] {
  return places.map(({ partition, position }) => ({ partition, position }));
}

/** Keeps the last place in each partition. */
export function lastPlaces(places: readonly Place[]): Place[] {
  const last = new Map<number, Place>();
  for (const place of places) {
    const seen = last.get(place.partition);
    if (seen === undefined || seen.position < place.position) last.set(place.partition, place);
  }
  return [...last.values()];
}
