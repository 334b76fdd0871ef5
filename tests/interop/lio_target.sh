#!/bin/sh
# Guest script: the Linux kernel's iSCSI target (LIO) with three targets on one portal, over files in memory.
# variables: PORTAL=addr:port BASE=iqn HOST=initiator-name USER SECRET MUTUAL_USER MUTUAL_SECRET
#   $BASE:plain   LUNs 0, 1, 7: 16 MiB, 8 MiB, 8 MiB; open to everyone
#   $BASE:chap    LUN 0, CHAP of $HOST
#   $BASE:mutual  LUN 0, mutual CHAP of $HOST
# commands, one a line: sum N (sha256 of disk N) | disable | enable | kick | stop; each ends with "DONE ..."
. /usr/lib/bench.sh

disk() { # NAME SIZE
	run truncate -s "$2" "/tmp/$1"
	run lio_file "$1" "/tmp/$1" "$(stat -c %s "/tmp/$1")"
	echo 1 >"$LIO/core/fileio_0/$1/attrib/emulate_write_cache"
	echo 1 >"$LIO/core/fileio_0/$1/attrib/emulate_tpws"
}

put() { # TARGET KEY VALUE; a line end would belong to the value
	printf %s "$3" >"$LIO/iscsi/$1/tpgt_1/acls/$HOST/auth/$2" || die "no CHAP"
}

sha3=no-sha3
if [ -f /job/sha3_generic.ko ]; then run insmod /job/sha3_generic.ko; sha3=sha3; fi
run mkdir -p /etc/target/pr /etc/target/alua     # LIO writes its reservations there
lio_start || die "no LIO"
disk 0 16M; disk 1 8M; disk 7 8M; disk chap 8M; disk mutual 8M
for name in plain chap mutual; do run lio_target "$BASE:$name" "$PORTAL"; done
for lun in 0 1 7; do run lio_lun "$BASE:plain" $lun fileio_0/$lun; done
run lio_lun "$BASE:chap" 0 fileio_0/chap
run lio_lun "$BASE:mutual" 0 fileio_0/mutual
for name in chap mutual; do
	echo 0 >"$LIO/iscsi/$BASE:$name/tpgt_1/attrib/generate_node_acls"
	run lio_acl "$BASE:$name" "$HOST" 0
	put "$BASE:$name" userid "$USER"; put "$BASE:$name" password "$SECRET"
	echo 1 >"$LIO/iscsi/$BASE:$name/tpgt_1/attrib/authentication"
done
put "$BASE:mutual" userid_mutual "$MUTUAL_USER"; put "$BASE:mutual" password_mutual "$MUTUAL_SECRET"
for name in plain chap mutual; do run lio_enable "$BASE:$name"; done
echo "READY $(uname -r) $sha3"
while read -r command argument; do
	answer=
	case $command in
	sum) answer=$(sha256sum "/tmp/$argument" | cut -d' ' -f1) ;;
	disable) run lio_disable "$BASE:plain" ;;
	enable) run lio_enable "$BASE:plain" ;;
	kick) run lio_kick "$BASE:chap" "$HOST" ;;
	stop) break ;;
	esac
	echo "DONE $command $argument $answer"
done
