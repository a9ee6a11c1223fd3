-- Reads the log entries that hold the changes after a point.
-- KEYS: meta, log. ARGV: birth, the position and mark up to which the caller has read, the point's position and mark,
-- how many changes are enough.
-- Returns entries as XRANGE does. The first one holds the change right after the point. Errors: AHEAD if the log ends
-- before the point, TRIMMED if it no longer holds the changes after it, OTHER if it has another mark there.
local position, known = tonumber(ARGV[4]), mark_at(tonumber(ARGV[4]))
if position > last then
    return redis.error_reply('AHEAD the log ends at ' .. text(last))
elseif not known then
    return redis.error_reply('TRIMMED the log no longer holds what follows that position')
elseif known ~= ARGV[5] then
    return redis.error_reply('OTHER the log has another history')
end
local entries, found, from = {}, 0, text(position + 1)
while found < tonumber(ARGV[6]) do
    local some = call('XRANGE', KEYS[2], from, '+', 'COUNT', 32)
    for _, entry in ipairs(some) do
        local final, changes = string.match(entry[1], '^(%d+)-(%d+)$')
        if #entries > 0 and found + tonumber(changes) > 16384 then
            return entries
        end
        entries[#entries + 1] = entry
        found, from = found + changes, text(final + 1)
    end
    if #some < 32 then
        break
    end
end
return entries
