-- Goes on sweeping an ended lease: nobody else does for so long. KEYS: meta, claims. ARGV: registry id, lease, ms.
local time = redis.call('TIME')
return redis.call('ZADD', KEYS[2], 'XX', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3], ARGV[2])
