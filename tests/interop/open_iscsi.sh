#!/bin/sh
# Guest script: the Linux kernel's initiator (open-iscsi) at a portal that asks for proof.
# variables: PORTAL=addr:port TARGET USER SECRET MUTUAL_USER MUTUAL_SECRET SEEK_USER SEEK_SECRET
. /usr/lib/bench.sh

set_node() { iscsiadm -m node -T "$TARGET" -p "$PORTAL" -o update -n "$1" -v "$2"; }
fresh() { iscsiadm -m node -T "$TARGET" -p "$PORTAL" -o delete >/dev/null 2>&1; run iscsi_node "$TARGET" "$PORTAL" "$@"; }

write_and_verify() {
	dev=$(iscsi_disk "$TARGET") || die "no disk"
	run ioverify -t 1 -s 2m "$dev"
	run iscsi_logout "$TARGET" "$PORTAL"
	echo "PASSED $1"
}

must_fail() {
	if iscsi_login "$TARGET" "$PORTAL" >/tmp/out 2>&1; then die "$1: the login succeeded"; fi
	echo "PASSED $1"
}

iscsi_start
fresh
must_fail "no credentials"

for way in "MD5 None None" "SHA1 CRC32C None" "SHA256 None CRC32C" "SHA3-256 CRC32C CRC32C"; do
	IFS=' ' read -r algorithm header data <<-END
		$way
	END
	fresh "node.conn[0].iscsi.HeaderDigest=$header" "node.conn[0].iscsi.DataDigest=$data"
	run iscsi_chap "$TARGET" "$PORTAL" "$USER" "$SECRET" "$MUTUAL_USER" "$MUTUAL_SECRET"
	run set_node node.session.auth.chap_algs "$algorithm"
	run iscsi_login "$TARGET" "$PORTAL"
	write_and_verify "mutual CHAP with $algorithm, header digest $header, data digest $data"
done

fresh
run iscsi_chap "$TARGET" "$PORTAL" "$USER" "another-secret-1"
must_fail "wrong secret"
fresh
run iscsi_chap "$TARGET" "$PORTAL" "$USER" "$SECRET" "$MUTUAL_USER" "another-secret-1"
must_fail "a target that proves itself otherwise"

iscsiadm -m node -o delete >/dev/null 2>&1
iscsiadm -m discovery -t st -p "$PORTAL" >/tmp/out 2>&1 && grep -q "$TARGET" /tmp/out && die "discovery without credentials"
db() { iscsiadm -m discoverydb -t st -p "$PORTAL" "$@"; }
run db -o new
for pair in "authmethod CHAP" "username $SEEK_USER" "password $SEEK_SECRET"; do
	run db -o update -n "discovery.sendtargets.auth.${pair% *}" -v "${pair#* }"
done
db --discover | grep -q "$TARGET" || die "no discovery with CHAP"
echo "PASSED discovery with credentials of its own"
log_clean || die "kernel logged errors"
