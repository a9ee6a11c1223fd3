-- The first writes of scripts that only end, keep or free something. Redis lets a script go on without memory once it has
-- run a command that frees some, as HDEL does, even of a field that is not there.
call('HDEL', meta, '')
store_clock()
