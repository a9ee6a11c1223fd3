-- The beginning of every script that needs an existing registry. KEYS[1] is the partition's meta, ARGV[1] the
-- registry's birth. If Redis has another registry, or none, the script changes nothing and fails with REGISTRY.
local call, pcall = redis.call, redis.pcall
local meta = KEYS[1]
local head = call('HMGET', meta, 'birth', 'time', 'wall', 'end', 'mark', 'count')
if head[1] ~= ARGV[1] then
    return redis.error_reply('REGISTRY another registry, or none, is here')
end
local last, mark, count = tonumber(head[4]), head[5], tonumber(head[6])

-- The partition's clock in ms. It advances with Redis' clock since it was last stored. If Redis' clock was set back,
-- the partition's clock advances by LONGEST_UNSTORED instead: extent.lua stores it once a second, so no more time can
-- have passed. Therefore, it never goes backwards, and setting Redis' clock does not extend the deadline of a delayed
-- script.
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

-- Returns the error LATE if a script's deadline has passed, and nil otherwise. Stores the clock before the error
-- reports the time to a replica. Otherwise the clock could later show an earlier time.
local function late(good_until)
    if now < tonumber(good_until) then
        return nil
    end
    -- HDEL comes first: without memory, Redis still allows it, and then also the commands after it.
    call('HDEL', meta, '')
    store_clock()
    return redis.error_reply('LATE ' .. text(now))
end
