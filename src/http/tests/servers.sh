#!/usr/bin/env bash
# Makes, in the directory $1, the certificates and keys of the servers in servers.txt: NAME.pem, NAME.chain with what the
# server sends after its own certificate, if anything, and NAME.key. root.pem is what pgwh.ca_file names.
set -euo pipefail
cd "$1"

now() { date -u -d "$1" +%Y%m%d%H%M%SZ; }

key() { # NAME KIND
  case $2 in
    rsa:*) openssl genrsa -out "$1.key" "${2#rsa:}" ;;
    rsa-pss) openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out "$1.key" ;;
    ed25519 | ed448) openssl genpkey -algorithm "$2" -out "$1.key" ;;
    *) openssl ecparam -name "$2" -genkey -noout -out "$1.key" ;;
  esac
}

# An issuer's database of certificates, which only `openssl ca` can give any dates to.
sign() { # NAME ISSUER SUBJECT FROM TO DIGEST EXTENSIONS
  printf '%b\n' "[ca]\ndefault_ca = it\n[it]\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\nunique_subject = no\npolicy = any\ncopy_extensions = none\n[any]\ncommonName = supplied\n[x]\n${7//|/\\n}" > it.cnf
  : > index.txt
  openssl req -new -key "$1.key" -subj "$3" -config /dev/null -out it.csr 2>/dev/null ||
    openssl req -new -key "$1.key" -subj "$3" -out it.csr
  local issuer=(-cert "$2.ca" -keyfile "$2.key")
  [ "$2" != "$1" ] || issuer=(-selfsign -keyfile "$1.key")
  openssl ca -batch -notext -config it.cnf -extensions x -in it.csr -out "$1.own" -startdate "$(now "$4")" -enddate "$(now "$5")" \
    -md "$6" "${issuer[@]}"
  cp "$1.own" "$1.ca"
}

leaf='basicConstraints=CA:FALSE|extendedKeyUsage=serverAuth'
authority='basicConstraints=critical,CA:TRUE|keyUsage=keyCertSign,cRLSign,digitalSignature'
names='subjectAltName=DNS:localhost,IP:127.0.0.1'

# NAME KIND ISSUER [SUBJECT [FROM [TO [DIGEST [EXTENSIONS]]]]]
make() {
  key "$1" "$2"
  local digest=${7:-sha256}
  case $3 in ed25519*) digest=default ;; esac
  sign "$1" "$3" "${4:-/CN=localhost}" "${5:-yesterday}" "${6:-1 year}" "$digest" "${8:-$leaf|$names}"
  cp "$1.own" "$1.pem"
}

make root prime256v1 root '/CN=Root' '-1 year' '10 years' sha256 "$authority"
make intermediate prime256v1 root '/CN=Intermediate' yesterday '1 year' sha256 "$authority"
make stranger prime256v1 stranger '/CN=Stranger' yesterday '1 year' sha256 "$authority"
# Another one of the same name.
make impostor prime256v1 impostor '/CN=Root' yesterday '1 year' sha256 "$authority"

for kind in rsa:1024 rsa:2048 rsa:3072 rsa:4096 rsa-pss prime256v1 secp384r1 secp521r1 secp256k1 ed25519 ed448; do
  make "${kind/:/}" "$kind" root
done
for digest in sha1 sha384 sha512; do make "$digest" prime256v1 root '' '' '' "$digest"; done

make expired prime256v1 root '' '-2 days' yesterday
make future prime256v1 root '' tomorrow '1 year'
make stranger-leaf prime256v1 stranger
make impostor-leaf prime256v1 impostor

make no-intermediate prime256v1 intermediate
make chain prime256v1 intermediate && cat intermediate.own > chain.chain
make chain-root prime256v1 intermediate && cat intermediate.own root.own > chain-root.chain
make disorder prime256v1 intermediate && cat root.own intermediate.own > disorder.chain
make old-intermediate prime256v1 root '/CN=Old' '-9 days' '-2 days' sha256 "$authority"
make old-chain prime256v1 old-intermediate && cat old-intermediate.own > old-chain.chain
make no-authority prime256v1 root '/CN=None' '' '' '' 'basicConstraints=CA:FALSE'
make no-authority-chain prime256v1 no-authority && cat no-authority.own > no-authority-chain.chain
make short prime256v1 root '/CN=Short' '' '' '' 'basicConstraints=critical,CA:TRUE,pathlen:0'
make long prime256v1 short '/CN=Long' '' '' '' "$authority"
make too-long prime256v1 long && cat long.own short.own > too-long.chain
make permits prime256v1 root '/CN=Permits' '' '' '' "$authority|nameConstraints=critical,permitted;DNS:localhost,permitted;IP:127.0.0.0/255.0.0.0"
make permitted prime256v1 permits && cat permits.own > permitted.chain
make forbids prime256v1 root '/CN=Forbids' '' '' '' "$authority|nameConstraints=critical,permitted;DNS:example.com"
make forbidden prime256v1 forbids && cat forbids.own > forbidden.chain

make other-name prime256v1 root '' '' '' '' "$leaf|subjectAltName=DNS:other.example,DNS:www.other.example"
make only-dns prime256v1 root '' '' '' '' "$leaf|subjectAltName=DNS:localhost"
make only-cn prime256v1 root '/CN=localhost' '' '' '' "$leaf"
make wildcard prime256v1 root '' '' '' '' "$leaf|subjectAltName=DNS:*.hooks.localhost"
make client-only prime256v1 root '' '' '' '' "basicConstraints=CA:FALSE|extendedKeyUsage=clientAuth|$names"
make no-usage prime256v1 root '' '' '' '' "basicConstraints=CA:FALSE|$names"
make critical prime256v1 root '' '' '' '' "$leaf|$names|1.2.3.4=critical,ASN1:UTF8String:unknown"

make own-authority prime256v1 own-authority '' '' '' '' "$authority|$names"
make own-leaf prime256v1 own-leaf
make own-authority-old prime256v1 own-authority-old '' '-2 days' yesterday '' "$authority|$names"
make own-authority-other prime256v1 own-authority-other '' '' '' '' "$authority|subjectAltName=DNS:other.example"
cat root.own own-authority.own own-leaf.own own-authority-old.own own-authority-other.own > root.pem
make unknown-authority prime256v1 unknown-authority '' '' '' '' "$authority|$names"
make unknown-leaf prime256v1 unknown-leaf '/CN=Unknown'
