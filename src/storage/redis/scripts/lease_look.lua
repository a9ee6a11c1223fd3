-- Moves the leases' clock on, marks leases whose deadline has passed as ending, and hands out those that nobody ends or sweeps.
-- ARGV: birth, how many leases may be marked, how many others handed out, ms for which the caller has them, ms without a look that make an
-- outage, the least ms that leases get after an outage of unknown length, ms that leases get beyond the length of an outage, the number of
-- the look after which the caller says how long an outage was, or '', and how many ms it was.
-- Gives 'gap', the number of the last look and the ms since then when there was a gap and the caller has not said how long it
-- was in truth, and nothing has changed. Otherwise 'look', the number of this look, '1' when there was an outage, the ms until the
-- next deadline (-1: there is none), how many leases were marked, and for each lease its id and 'STATE REASON OWNER'.
local most, claim = tonumber(ARGV[2]), tonumber(ARGV[4])
local state = call('HMGET', meta, 'looks', 'revived', 'grace')
local looks, revived, grace = tonumber(state[1]), tonumber(state[2]), tonumber(state[3])
local outage = nil
if since_look > tonumber(ARGV[5]) then
    if ARGV[8] ~= state[1] then
        return {'gap', looks, since_look}
    end
    if tonumber(ARGV[9]) > tonumber(ARGV[5]) then
        outage = tonumber(ARGV[9])
    end
end
-- Asked before anything is written: their types.
call('HLEN', KEYS[2])
call('ZCARD', KEYS[3])
call('HLEN', KEYS[4])
call('ZCARD', KEYS[5])
call('HDEL', meta, '')
looks = looks + 1
if outage then
    -- Nobody could keep a lease alive meanwhile: those that were kept before this have so long from now on.
    revived, grace = lease_now, math.min(outage + ARGV[7], tonumber(ARGV[6]))
end
call('HSET', meta, 'time', text(now), 'wall', text(wall), 'lease_time', text(lease_now), 'looked', text(now),
    'looks', text(looks), 'revived', text(revived), 'grace', text(grace))

local given, marked = {}, 0
for _, lease in ipairs(call('ZRANGEBYSCORE', KEYS[5], '-inf', text(now), 'LIMIT', 0, ARGV[3])) do
    call('ZADD', KEYS[5], text(now + claim), lease)
    given[#given + 1] = lease
    given[#given + 1] = call('HGET', KEYS[4], lease) or 'mx 0 0 '
end
local due = call('ZRANGEBYSCORE', KEYS[3], '-inf', text(lease_now), 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #due, 2 do
    local lease, deadline = due[i], tonumber(due[i + 1])
    local ttl = tonumber(string.match(call('HGET', KEYS[2], lease) or '', '^%d+')) or 0
    local extended = revived + 1 + math.max(ttl, grace)
    if deadline - 1 - ttl < revived and extended > lease_now then
        call('ZADD', KEYS[3], text(extended), lease)
    else
        local known = end_lease(lease, 'x', claim, '0')
        if known then
            given[#given + 1] = lease
            given[#given + 1] = known
        end
    end
    marked = marked + 1
end
local next = call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
local wait = next and math.max(0, next - lease_now) or -1
return {'look', looks, outage and 1 or 0, wait, marked, unpack(given)}
