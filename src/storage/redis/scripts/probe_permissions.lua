-- Tries every command that the other scripts use, on a key that it finally deletes. KEYS: that key.
-- Returns the names of the commands that the user may not run. The script runs every few seconds. Most commands are
-- therefore chosen to change nothing, because each change goes to the Redis replicas and the append-only file.
local key = KEYS[1]
local missing = {}
local function try(name, ...)
    local done = redis.pcall(name, ...)
    if type(done) == 'table' and done.err then
        local problem = string.lower(done.err)
        if string.find(problem, 'noperm', 1, true) or string.find(problem, "can't run this command", 1, true)
            or string.find(problem, 'no permissions', 1, true) or string.find(problem, 'acl failure', 1, true) then
            missing[#missing + 1] = name
        end
    end
end
try('TIME')
try('UNLINK', key)
try('HSET', key, 'a', 1)
try('HSETNX', key, 'a', 1)
try('HINCRBY', key, 'a', 1)
try('HGET', key, 'a')
try('HMGET', key, 'a')
try('HGETALL', key)
try('HEXISTS', key, 'a')
try('HLEN', key)
try('HKEYS', key)
try('HVALS', key)
try('HSCAN', key, 0)
try('HDEL', key, 'a')
try('ZADD', key, 'XX', 1, 'a')
try('ZCARD', key)
try('ZSCORE', key, 'a')
try('ZRANGE', key, 0, 0)
try('ZRANGEBYSCORE', key, 0, 0)
try('ZSCAN', key, 0)
try('ZREM', key, 'a')
try('SETBIT', key, 0, 1)
try('GET', key)
try('UNLINK', key)
try('SADD', key, 1)
try('SCARD', key)
try('SMEMBERS', key)
try('SET', key, '', 'NX')
try('TYPE', key)
try('UNLINK', key)
try('XADD', key, 'NOMKSTREAM', '1-1', 'e', '')
try('XRANGE', key, '-', '+', 'COUNT', 1)
try('XTRIM', key, 'MINID', 0)
redis.pcall('UNLINK', key)
return missing
