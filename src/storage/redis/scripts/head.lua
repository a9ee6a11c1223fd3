-- Begins every script but those that make a registry. KEYS[1] is the partition's meta, ARGV[1] the registry's birth.
-- If another registry, or none, is here, the script changes nothing and answers REGISTRY.
local call, pcall = redis.call, redis.pcall
local meta = KEYS[1]
local head = call('HMGET', meta, 'birth', 'time', 'wall', 'end', 'mark', 'count')
if head[1] ~= ARGV[1] then
    return redis.error_reply('REGISTRY another registry, or none, is here')
end
local last, mark, count = tonumber(head[4]), head[5], tonumber(head[6])

-- The partition's clock in ms. It advances by what Redis' clock has advanced since it was stored. If that clock was set
-- back, it advances by LONGEST_UNSTORED instead: extent.lua stores it once a second, so no more time can have passed.
-- So it never goes backwards, and a script that waits gets no more time because somebody sets Redis' clock.
local LONGEST_UNSTORED = 1200
local time = call('TIME')
local wall = time[1] * 1000 + math.floor(time[2] / 1000)
local now = head[2] + (wall >= tonumber(head[3]) and wall - head[3] or LONGEST_UNSTORED)

local function text(number)
    return string.format('%.0f', number)
end

local function store_clock()
    call('HSET', meta, 'time', text(now), 'wall', text(wall))
end

-- Returns the error for a script that is no longer good, or nil while it is good. The clock is stored before a replica
-- is told the time: otherwise it could show an earlier time later.
local function late(good_until)
    if now < tonumber(good_until) then
        return nil
    end
    -- HDEL goes first: Redis allows it without memory, and after it the next command, too.
    call('HDEL', meta, '')
    store_clock()
    return redis.error_reply('LATE ' .. text(now))
end
