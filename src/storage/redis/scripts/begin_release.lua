-- The first writes of scripts that only end, keep or free something. If Redis has no memory left, it lets a script
-- continue after a command that frees memory. HDEL counts as one, even for a field that does not exist.
call('HDEL', meta, '')
store_clock()
