# Rate limits in Redis, on this machine: a leased one beside one of this
# server's memory, one decision a statement by pgbench, 8 clients, 1,000 keys;
# and an exact one beside a bare loop of EVALSHA in C, 8 clients each, where a
# statement makes 100 decisions, so that it is a loop too. In turns, medians of
# the rounds; a ratio is the median of the rounds' ratios.
REDIS_ROUNDS=${REDIS_ROUNDS:-11}
REDIS_SECONDS=${REDIS_SECONDS:-2}

# redis_transactions SCRIPT: transactions a second.
redis_transactions()
{
	pgbench -n -M prepared -c 8 -j 2 -T "$REDIS_SECONDS" -f "$work/$1.sql" |
		sed -n 's/^tps = \([0-9.]*\).*/\1/p'
}

redis_ratio()
{
	paste "$work/redis.$1" "$work/redis.$2" |
		awk '{ printf "%.4f\n", $2 / $1 }' | median
}

measure_ratelimit_redis()
{
	rm -f "$work"/redis.*
	redis_port=$(python3 -c 'import socket
print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
	as_user sh "$work/tree/test/peers/redis.sh" start "$work/redis" "$redis_port"
	cc -O2 -c -I"$("$PG_CONFIG" --includedir-server)" -I"$work/tree/src" \
		-o "$work/bin/script.o" "$work/tree/modules/redis/script.c" || die "script.c does not build"
	compile evalsha "$work/bin/script.o" -lhiredis -lpthread
	sql >/dev/null <<-EOSQL
		SELECT mlint.rate_backend_create('redis', options => '{"hosts": "127.0.0.1:$redis_port"}');
		SELECT mlint.rate_rule_create('local', 'token_bucket', 1000, '1 s', 2000);
		SELECT mlint.rate_rule_create('leased', 'token_bucket', 1000, '1 s', 2000,
			backend => 'redis', mode => 'leased');
		SELECT mlint.rate_rule_create('exact', 'token_bucket', 1000000, '1 s', 1000000,
			backend => 'redis');
	EOSQL
	random='\set n random(1, 1000)'
	printf "%s\nSELECT mlint.rate_check('local', :n);\n" "$random" >"$work/redis_local.sql"
	printf "%s\nSELECT mlint.rate_check('leased', :n);\n" "$random" >"$work/redis_leased.sql"
	printf "SELECT count(*) FILTER (WHERE mlint.rate_allow('exact', (random() * 1000)::int::text)) FROM generate_series(1, 100);\n" \
		>"$work/redis_exact.sql"
	n=0
	while [ $((n += 1)) -le "$REDIS_ROUNDS" ]; do
		redis_transactions redis_local | cut -d. -f1 >>"$work/redis.local"
		redis_transactions redis_leased | cut -d. -f1 >>"$work/redis.leased"
		"$work/bin/evalsha" "$redis_port" 8 "$REDIS_SECONDS" >>"$work/redis.bare"
		calc "$(redis_transactions redis_exact) * 100" "%.0f\n" >>"$work/redis.exact"
	done
	[ "$(sql -c "SELECT failures FROM mlint.rate_backends")" = 0 ] ||
		die "Redis was away: $(sql -c "SELECT last_error FROM mlint.rate_backends")"
	row "rate_check, leased, 8 clients, 1,000 keys (limit: of this server's memory)" \
		"≥ 0.9" "$(median <"$work/redis.local")/s" "$(median <"$work/redis.leased")/s" \
		"$(calc "$(redis_ratio local leased)")"
	row "rate_allow, exact, 8 clients, 1,000 keys (limit: bare EVALSHA loop in C)" \
		"≥ 0.7" "$(median <"$work/redis.bare")/s" "$(median <"$work/redis.exact")/s" \
		"$(calc "$(redis_ratio bare exact)")"
	sql >/dev/null <<-EOSQL
		SELECT mlint.rate_rule_drop(r) FROM unnest('{local,leased,exact}'::text[]) r;
		SELECT mlint.rate_backend_drop('redis');
	EOSQL
	sh "$work/tree/test/peers/redis.sh" stop "$work/redis"
}
