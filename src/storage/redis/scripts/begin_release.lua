-- The first writes of scripts that only end, keep or free something. Without memory, Redis lets a script go on once it
-- has run a command that frees memory. HDEL counts as one, even of a field that does not exist.
call('HDEL', meta, '')
store_clock()
