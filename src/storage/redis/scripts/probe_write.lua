-- Makes a write, which Redis refuses whenever it refuses growth. Also counts the replicas of sessiond.
-- KEYS: meta, the replicas by the time of their last call. ARGV: birth, the caller's id, for how many ms a replica counts
-- after its last call.
-- Returns the number of replicas, or nothing if they cannot be counted.
store_clock()
-- Sessions can be changed even if one of these commands fails.
if type(pcall('ZADD', KEYS[2], text(now), ARGV[2])) == 'table' then
    return false
end
local gone = pcall('ZRANGEBYSCORE', KEYS[2], '-inf', text(now - ARGV[3]), 'LIMIT', 0, 100)
if #gone > 0 then
    pcall('ZREM', KEYS[2], unpack(gone))
end
local replicas = pcall('ZCARD', KEYS[2])
return type(replicas) ~= 'table' and replicas
