//! `#[derive(DeviceProperties)]`: one struct gives the typed configuration, its parser and its description.
//!
//! Use it through `cardcage_plugin_api`, whose `properties` module documents the attributes.

use proc_macro::TokenStream;
use quote::{quote, quote_spanned};
use syn::{Data, DeriveInput, Expr, Field, Fields, Lit, LitStr, Type, parse_macro_input, spanned::Spanned};

/// Derives `cardcage_plugin_api::properties::Properties`.
///
/// Every field is a property: its doc comment is the text that users read, its type decides what is accepted.
/// Attributes: `#[prop(default = …, range = a..=b, unit = "…", name = "…", flatten)]`. A field without default is
/// required, unless it is an `Option`.
#[proc_macro_derive(DeviceProperties, attributes(prop))]
pub fn device_properties(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// What the attributes of one field say.
struct Property {
    name: String,
    doc: String,
    default: Option<String>,
    default_number: Option<(i128, proc_macro2::Span)>,
    unit: String,
    min: Option<Expr>,
    max: Option<Expr>,
    max_exclusive: bool,
    flatten: bool,
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let name = &input.ident;
    let fields: Vec<&Field> = match &input.data {
        Data::Struct(s) => match &s.fields {
            Fields::Named(named) => named.named.iter().collect(),
            Fields::Unit => Vec::new(),
            Fields::Unnamed(_) => return Err(syn::Error::new(name.span(), "DeviceProperties needs named fields")),
        },
        _ => return Err(syn::Error::new(name.span(), "DeviceProperties can only be derived for a struct")),
    };
    let api = quote!(::cardcage_plugin_api::properties);
    let (mut specs, mut reads, mut idents) = (Vec::new(), Vec::new(), Vec::new());
    for field in fields {
        let ident = field.ident.as_ref().ok_or_else(|| syn::Error::new(field.span(), "a property needs a name"))?;
        let ty = &field.ty;
        let property = property(field, ident)?;
        idents.push(quote!(#ident));
        if property.flatten {
            specs.push(quote!(out.extend(<#ty as #api::Properties>::specs());));
            reads.push(quote!(let #ident = <#ty as #api::Properties>::take(given)?;));
            continue;
        }
        check_default(&property)?;
        let Property { name, doc, default, unit, .. } = &property;
        let optional = is_option(ty);
        let required = default.is_none() && !optional;
        let default = default.as_ref().map_or(quote!(None), |text| quote!(Some(#text)));
        let min = property.min.as_ref().map_or(quote!(None), |e| quote!(Some((#e) as i128)));
        let less = i128::from(property.max_exclusive);
        let max = property.max.as_ref().map_or(quote!(None), |e| quote!(Some((#e) as i128 - #less)));
        // Spanned to the type: an unsupported type is reported where it stands.
        let spec = quote_spanned!(ty.span()=> #api::spec::<#ty>(#name, #doc, #required, #default, #unit, #min, #max));
        specs.push(quote!(out.push(#spec);));
        let take = quote_spanned!(ty.span()=> given.take::<#ty>);
        reads.push(if optional {
            quote!(let #ident: #ty = #take(#name, #default, #min, #max)?.flatten();)
        } else {
            quote!(let #ident: #ty = #take(#name, #default, #min, #max)?.ok_or_else(|| #api::missing(#name))?;)
        });
    }
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #impl_generics #api::Properties for #name #type_generics #where_clause {
            fn specs() -> ::std::vec::Vec<#api::PropertySpec> {
                #[allow(unused_mut)]
                let mut out = ::std::vec::Vec::new();
                #(#specs)*
                out
            }
            fn take(given: &mut #api::Given) -> ::cardcage_plugin_api::Result<Self> {
                #(#reads)*
                Ok(Self { #(#idents),* })
            }
        }
    })
}

fn property(field: &Field, ident: &syn::Ident) -> syn::Result<Property> {
    let mut p = Property {
        name: ident.to_string().trim_start_matches("r#").replace('_', "-"),
        doc: doc_text(&field.attrs),
        default: None,
        default_number: None,
        unit: String::new(),
        min: None,
        max: None,
        max_exclusive: false,
        flatten: false,
    };
    for attr in field.attrs.iter().filter(|a| a.path().is_ident("prop")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("default") {
                let expr: Expr = meta.value()?.parse()?;
                (p.default, p.default_number) = default_text(&expr)?;
            } else if meta.path.is_ident("range") {
                let expr: Expr = meta.value()?.parse()?;
                let Expr::Range(range) = expr else { return Err(meta.error("a range looks like `64..=32768`")) };
                p.min = range.start.map(|e| *e);
                p.max = range.end.map(|e| *e);
                p.max_exclusive = matches!(range.limits, syn::RangeLimits::HalfOpen(_));
            } else if meta.path.is_ident("unit") {
                p.unit = meta.value()?.parse::<LitStr>()?.value();
            } else if meta.path.is_ident("name") {
                p.name = meta.value()?.parse::<LitStr>()?.value();
            } else if meta.path.is_ident("flatten") {
                p.flatten = true;
            } else {
                return Err(
                    meta.error("unknown property attribute; expected one of: default, range, unit, name, flatten")
                );
            }
            Ok(())
        })?;
    }
    if p.doc.is_empty() && !p.flatten {
        return Err(syn::Error::new(
            ident.span(),
            format!("property `{ident}` needs a `///` doc comment: it is the text that users see in the property list"),
        ));
    }
    Ok(p)
}

/// A default as text, and where it is a number also as that, for the check against the range.
type Default = (Option<String>, Option<(i128, proc_macro2::Span)>);

fn default_text(expr: &Expr) -> syn::Result<Default> {
    let literal = "a default is a string, integer or bool literal";
    let (negative, inner) = match expr {
        Expr::Unary(u) if matches!(u.op, syn::UnOp::Neg(_)) => (true, &*u.expr),
        other => (false, other),
    };
    let Expr::Lit(lit) = inner else { return Err(syn::Error::new(expr.span(), literal)) };
    match &lit.lit {
        Lit::Str(s) if !negative => Ok((Some(s.value()), None)),
        Lit::Bool(b) if !negative => Ok((Some(if b.value { "on" } else { "off" }.into()), None)),
        Lit::Int(i) => {
            let n = i.base10_parse::<i128>()? * if negative { -1 } else { 1 };
            Ok((Some(n.to_string()), Some((n, expr.span()))))
        }
        _ => Err(syn::Error::new(expr.span(), literal)),
    }
}

/// A default outside of its own range is an error where the plugin is compiled.
fn check_default(p: &Property) -> syn::Result<()> {
    let Some((n, span)) = p.default_number else { return Ok(()) };
    let number = |e: &Option<Expr>| match e {
        Some(Expr::Lit(l)) => match &l.lit {
            Lit::Int(i) => i.base10_parse::<i128>().ok(),
            _ => None,
        },
        _ => None,
    };
    let below = number(&p.min).is_some_and(|min| n < min);
    let above = number(&p.max).is_some_and(|max| n > max - i128::from(p.max_exclusive));
    if below || above {
        return Err(syn::Error::new(span, format!("the default {n} of property `{}` is outside of its range", p.name)));
    }
    Ok(())
}

fn doc_text(attrs: &[syn::Attribute]) -> String {
    let lines = attrs.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| match &a.meta {
        syn::Meta::NameValue(nv) => match &nv.value {
            Expr::Lit(l) => match &l.lit {
                Lit::Str(s) => Some(s.value().trim().to_string()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").trim().to_string()
}

fn is_option(ty: &Type) -> bool {
    matches!(ty, Type::Path(p) if p.path.segments.last().is_some_and(|s| s.ident == "Option"))
}
