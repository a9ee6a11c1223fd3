-- Reads changes from the log.
-- KEYS: meta, log. ARGV: registry id, the first position wanted, how many at most.
-- Gives the bytes of the changes, one after the other; AHEAD when the log does not reach the place before them, TRIMMED when
-- they are no longer held.
local first, reaches = tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[1], 'end'))
if first > reaches + 1 then
    return redis.error_reply('AHEAD the log does not reach that position')
end
local entries = redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', ARGV[3])
if first <= reaches and (not entries[1] or tonumber(string.match(entries[1][1], '^%d+')) ~= first) then
    return redis.error_reply('TRIMMED changes after that position are no longer held')
end
local changes = {}
for i, entry in ipairs(entries) do
    changes[i] = entry[2][2]
end
return table.concat(changes)
