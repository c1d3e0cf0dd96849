#!/bin/sh
# moto's server on loopback: AWS Secrets Manager, STS, IAM, and an instance's
# metadata service (http://127.0.0.1:PORT/latest/).
#
#   moto.sh start DIR PORT [keys]     moto.sh stop DIR
#
# With "keys" it checks signatures and policies, as AWS does. Then there is a
# user who may use Secrets Manager alone, and DIR/keys has his key, his
# secret, and a key, secret and session token of a role of his, a line each.
# All it needs lies in DIR, which is made: the packages (venv; MOTO_VENV names
# another place for them), moto.pid, moto.log. Any user can run it.
set -eu

. "$(dirname "$0")/lib.sh"

case ${1:-} in
stop) stop "$2/moto.pid"; exit 0 ;;
start) ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
venv=${MOTO_VENV:-$dir/venv}
sh "$(dirname "$0")/venv.sh" "$venv" moto

# So many actions pass unchecked: those that make the user and the role.
[ "${4:-}" != keys ] || export INITIAL_NO_AUTH_ACTION_COUNT=6
export MOTO_IAM_LOAD_MANAGED_POLICIES=false
launch moto "$venv/bin/python" -m moto.server -H 127.0.0.1 -p "$3"
answers moto curl -sf --max-time 10 --noproxy '*' "http://127.0.0.1:$3/moto-api/"
[ "${4:-}" = keys ] || exit 0

"$venv/bin/python" - "http://127.0.0.1:$3" >"$dir/keys" <<'EOF'
import json, sys
import boto3

def client(name):
    return boto3.client(name, endpoint_url=sys.argv[1], region_name="eu-central-1",
                        aws_access_key_id="x", aws_secret_access_key="x")

policy = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "secretsmanager:*", "Resource": "*"}]})
trust = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]})
iam = client("iam")
iam.create_user(UserName="mlint")
iam.put_user_policy(UserName="mlint", PolicyName="secrets", PolicyDocument=policy)
key = iam.create_access_key(UserName="mlint")["AccessKey"]
role = iam.create_role(RoleName="mlint", AssumeRolePolicyDocument=trust)["Role"]
iam.put_role_policy(RoleName="mlint", PolicyName="secrets", PolicyDocument=policy)
lent = client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
print(key["AccessKeyId"], key["SecretAccessKey"], lent["AccessKeyId"],
      lent["SecretAccessKey"], lent["SessionToken"], sep="\n")
EOF
