-- Ends the leases whose deadline has passed, and hands out ended ones that nobody sweeps. ARGV: registry id, how many leases
-- at most, ms for which nobody else sweeps them, ms after which a time without anybody here was an outage.
-- Gives the ms until the next deadline (-1: there is none), '1' when there was an outage, and for each lease to sweep its id
-- and 'REASON PARTITIONS OWNER'.
local most = tonumber(ARGV[2])
local head = redis.call('HMGET', KEYS[1], 'looked', 'revived')
local outage = not head[1] or now - head[1] > tonumber(ARGV[4]) or now < tonumber(head[1]) - 1000
local revived = tonumber(head[2]) or 0
if outage then
    -- Nobody could keep a lease alive meanwhile: each gets its full ttl, when its turn comes.
    revived = now
    redis.call('HSET', KEYS[1], 'revived', now)
end
redis.call('HSET', KEYS[1], 'looked', now)

local given = {}
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, most)) do
    redis.call('ZADD', KEYS[5], now + ARGV[3], lease)
    given[#given + 1] = lease
    given[#given + 1] = redis.call('HGET', KEYS[4], lease) or 'x 0 '
end
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most - #given / 2)
for i = 1, #due, 2 do
    local lease, deadline = due[i], tonumber(due[i + 1])
    local ttl = tonumber(string.match(redis.call('HGET', KEYS[3], lease) or '', '^%d+')) or 0
    if deadline - ttl < revived and revived + ttl > now then
        redis.call('ZADD', KEYS[2], revived + ttl, lease)
    else
        local known = end_lease(lease, 'x', ARGV[3])
        if known then
            given[#given + 1] = lease
            given[#given + 1] = known
        end
    end
end
local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local wait = next and string.format('%.0f', math.max(0, next - now)) or '-1'
return {wait, outage and head[1] and '1' or '0', unpack(given)}
