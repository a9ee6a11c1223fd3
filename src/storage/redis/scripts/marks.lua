-- Gives the mark at a position, '' where the log does not hold it. KEYS: meta, log. ARGV: birth, position.
return mark_at(tonumber(ARGV[2])) or ''
