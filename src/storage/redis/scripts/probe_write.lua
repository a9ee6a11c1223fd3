-- Writes something that Redis refuses when it refuses growth. KEYS: meta. ARGV: birth.
call('HSET', meta, 'time', text(now), 'wall', text(wall))
return 1
