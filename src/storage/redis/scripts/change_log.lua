-- Appends changes to the partition's log, in a script whose KEYS[2] is that log and whose ARGV[2] and ARGV[3] are a number by
-- chance and how many changes are retained.
local last = tonumber(redis.call('HGET', KEYS[1], 'end'))
local first, count = last, tonumber(redis.call('HGET', KEYS[1], 'count'))

-- `kind` is the letter of what happened to `session`.
local function append(kind, session)
    last = last + 1
    redis.call('XADD', KEYS[2], string.format('%.0f-%s', last, ARGV[2]), 'e', kind .. session)
end

-- Writes down how far the log reaches. Called once, after the last change.
local function commit()
    if last == first then
        return
    end
    redis.call('HSET', KEYS[1], 'end', string.format('%.0f', last), 'count', string.format('%.0f', count))
    -- Trimming takes whole nodes of a hundred entries: once for each of them is enough.
    if math.floor(first / 100) ~= math.floor(last / 100) then
        redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[3])
    end
end
