-- Begins every script but those that make a registry. KEYS[1] is the partition's meta, ARGV[1] the registry's birth.
-- Changes nothing, and answers REGISTRY, when another registry or none is here.
local call, pcall = redis.call, redis.pcall
local meta = KEYS[1]
local head = call('HMGET', meta, 'birth', 'time', 'wall', 'end', 'mark', 'count')
if head[1] ~= ARGV[1] then
    return redis.error_reply('REGISTRY another registry, or none, is here')
end
local last, mark, count = tonumber(head[4]), head[5], tonumber(head[6])

-- The partition's clock in ms. It goes on from its last reading by what Redis' clock has advanced since, and stands still
-- when that clock was set back, so it never goes backwards.
local time = call('TIME')
local wall = time[1] * 1000 + math.floor(time[2] / 1000)
local now = head[2] + math.max(0, wall - head[3])

local function text(number)
    return string.format('%.0f', number)
end
