# Certificates from Pebble, which does not sleep here (PEBBLE_VA_NOSLEEP=1) but
# rejects nonces as ever: one, from the call until it is in use, beside Debian's
# uacme, which does the same with a webroot served by nginx, in turns; and a
# hundred asked for in one statement, beside as many by uacme one after the
# other, which is its mean of the rounds times a hundred. Two Pebbles of the same
# kind, since each looks for http-01 on one port.
ACME_ROUNDS=${ACME_ROUNDS:-15}
ACME_CERTIFICATES=${ACME_CERTIFICATES:-100}

# pebble DIR HTTP_PORT: start one; prints its port. It takes six in a row.
pebble()
{
	for i in $(seq 20); do
		p=$(free_ports)
		p=${p%% *}
		as_user sh "$work/tree/test/peers/pebble.sh" start "$1" "$p" "$2" >&2 && break
		as_user sh "$work/tree/test/peers/pebble.sh" stop "$1"
	done
	echo "$p"
}

# mlint_one NAME: seconds from the call until the certificate is in use.
mlint_one()
{
	begun=$(date +%s.%N)
	sql >"$work/acme.state" <<-EOSQL
		SELECT mlint.certificate_issue('{$1}', 'pebble', name => '$1') AS id \gset
		SELECT mlint.certificate_wait(:'id', '1 minute');
	EOSQL
	[ "$(cat "$work/acme.state")" = ACTIVE ] || die "$1 is not ACTIVE"
	echo "$begun $(date +%s.%N)" | awk '{ printf "%.4f\n", $2 - $1 }'
}

measure_acme()
{
	gateway_port=$(free_ports)
	gateway_port=${gateway_port%% *}
	ours=$(pebble "$work/tmp/pebble" "$gateway_port")
	theirs=$(pebble "$work/tmp/pebble-uacme" "$http_port")
	sql >/dev/null <<-EOSQL
		ALTER SYSTEM SET mlint.gateway_listen = '$gateway_port';
		SELECT pg_reload_conf();
		SELECT mlint.secret_put('pebble-ca', pg_read_file('$work/tmp/pebble/ca.pem'));
		SELECT mlint.acme_account_create('pebble', 'https://localhost:$ours/dir',
			'admin@example.org', ca => '{"secret": "pebble-ca"}');
		SELECT mlint.acme_account_wait('pebble');
	EOSQL
	uacme="sh $work/tree/test/peers/uacme.sh $work/tmp/uacme https://localhost:$theirs/dir $work/tmp/pebble-uacme/ca.pem $work/tmp/webroot"
	# Once each beforehand: accounts, and what is loaded when first used.
	as_root $uacme warm.example.org >/dev/null
	mlint_one warm.example.org >/dev/null

	: >"$work/acme.mlint"
	: >"$work/acme.uacme"
	for i in $(seq "$ACME_ROUNDS"); do
		as_root $uacme "one-$i.example.org" >>"$work/acme.uacme"
		mlint_one "one-$i.example.org" >>"$work/acme.mlint"
	done
	ratio=$(paste "$work/acme.uacme" "$work/acme.mlint" |
		awk '{ printf "%.4f\n", $2 / $1 }' | median)
	row "one certificate from Pebble, beside uacme" "≤ 1.2" \
		"$(median <"$work/acme.uacme") s" "$(median <"$work/acme.mlint") s" "$(calc "$ratio")"

	seconds=$(sql <<-EOSQL
		SELECT clock_timestamp() AS began \gset
		SELECT count(mlint.certificate_issue(ARRAY['many-' || n || '.example.org'], 'pebble')) AS n
		FROM generate_series(1, $ACME_CERTIFICATES) n \gset
		SELECT count(mlint.certificate_wait(id, '5 minutes')) AS n FROM mlint.certificates \gset
		SELECT round(extract(epoch FROM clock_timestamp() - :'began'), 2);
	EOSQL
	)
	[ "$(sql -c "SELECT count(*) FROM mlint.certificates WHERE state = 'ACTIVE'")" = $((ACME_CERTIFICATES + ACME_ROUNDS + 1)) ] ||
		die "not all certificates are ACTIVE"
	sql -c "SELECT g.chain FROM mlint.certificates c, mlint.certificate_get(c.id) g
		WHERE c.name = 'many-1.example.org'" >"$work/acme.pem"
	openssl verify -CAfile "$work/tmp/pebble/root.pem" -untrusted "$work/acme.pem" \
		-verify_hostname many-1.example.org "$work/acme.pem" >/dev/null ||
		die "the chain does not verify"
	alone=$(awk -v n="$ACME_CERTIFICATES" '{ s += $1 } END { printf "%.1f", s / NR * n }' "$work/acme.uacme")
	row "$ACME_CERTIFICATES certificates at once, beside uacme one after the other (its mean of $ACME_ROUNDS times $ACME_CERTIFICATES)" \
		"≥ 5 × faster" "$alone s" "$seconds s" "$(calc "$alone / $seconds" %.1f)"
	sql -c "ALTER SYSTEM RESET mlint.gateway_listen" -c "SELECT pg_reload_conf()" >/dev/null
	as_user sh "$work/tree/test/peers/pebble.sh" stop "$work/tmp/pebble"
	as_user sh "$work/tree/test/peers/pebble.sh" stop "$work/tmp/pebble-uacme"
}
