-- Returns the mark at a position, or '' if the log does not hold it.
-- KEYS: meta, log. ARGV: birth, the position and mark up to which the caller has read, the position.
return mark_at(tonumber(ARGV[4])) or ''
